package aml

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The bytes of these tests were written by hand from the specification's grammar, apart from the functions they test.
func TestTerms(t *testing.T) {
	tests := []struct {
		name string
		term Term
		want string
	}{
		{"zero", Integer(0), "00"},
		{"one", Integer(1), "01"},
		{"byte, least", Integer(2), "0a 02"},
		{"byte, greatest", Integer(0xff), "0a ff"},
		{"word, least", Integer(0x100), "0b 00 01"},
		{"word, greatest", Integer(0xffff), "0b ff ff"},
		{"dword, least", Integer(0x1_0000), "0c 00 00 01 00"},
		{"dword, greatest", Integer(0xffff_ffff), "0c ff ff ff ff"},
		{"qword, least", Integer(0x1_0000_0000), "0e 00 00 00 00 01 00 00 00"},
		{"qword", Integer(0x0123_4567_89ab_cdef), "0e ef cd ab 89 67 45 23 01"},

		{"string", String("ACPI0007"), "0d 41 43 50 49 30 30 30 37 00"},
		{"empty string", String(""), "0d 00"},
		{"buffer", Buffer([]byte{0xaa, 0xbb}), "11 05 0a 02 aa bb"},
		{"empty buffer", Buffer(nil), "11 02 00"},
		{"package", Package(Integer(5), Integer(0)), "12 05 02 0a 05 00"},
		{"empty package", Package(), "12 02 00"},
		// As an integer it is 0x010CD041.
		{"EISA identifier", EISAID("PNP0C01"), "0c 41 d0 0c 01"},
		{"EISA identifier of other letters", EISAID("ABZFFFF"), "0c 04 5a ff ff"},
		{"UUID", UUID("33db4d5b-1ff7-401c-9657-7441c03dd766"),
			"11 13 0a 10 5b 4d db 33 f7 1f 1c 40 96 57 74 41 c0 3d d7 66"},

		{"relative path", Path("CDW1"), "43 44 57 31"},
		{"short segment", Path("A"), "41 5f 5f 5f"},
		{"absolute path", Path(`\_SB`), "5c 5f 53 42 5f"},
		{"two segments", Path(`\_SB.PCI0`), "5c 2e 5f 53 42 5f 50 43 49 30"},
		{"two segments, relative", Path("PCI0._CRS"), "2e 50 43 49 30 5f 43 52 53"},
		{"three segments", Path(`\_SB.PCI0.S1`), "5c 2f 03 5f 53 42 5f 50 43 49 30 53 31 5f 5f"},

		{"name", Name("_UID", Integer(1)), "08 5f 55 49 44 01"},
		{"scope", Scope(`\_SB`, Name("_UID", Integer(0))), "10 0c 5c 5f 53 42 5f 08 5f 55 49 44 00"},
		{"device", Device("COM1", Name("_UID", Integer(0))), "5b 82 0b 43 4f 4d 31 08 5f 55 49 44 00"},
		{"method", Method("_OSC", 4, Return(Arg(3))), "14 08 5f 4f 53 43 0c a4 6b"},
		{"method without a body", Method("FOO", 0), "14 06 46 4f 4f 5f 08"},

		{"arguments", join(Arg(0), Arg(6)), "68 6e"},
		{"locals", join(Local(0), Local(7)), "60 67"},
		{"store", Store(Local(0), Path("CDW3")), "70 60 43 44 57 33"},
		{"and", And(Arg(0), Integer(1), Local(0)), "7b 68 01 60"},
		{"or", Or(Arg(0), Integer(1), Local(0)), "7d 68 01 60"},
		{"equal", Equal(Arg(0), Arg(1)), "93 68 69"},
		{"not equal", NotEqual(Arg(0), Arg(1)), "92 93 68 69"},
		{"if", If(Arg(0), Return(Integer(1)), Return(Integer(0))), "a0 06 68 a4 01 a4 00"},
		{"else", Else(Return(Integer(0))), "a1 03 a4 00"},
		{"field of a buffer", CreateDWordField(Arg(3), 8, "CDW3"), "8a 6b 0a 08 43 44 57 33"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, unhex(t, tt.want), []byte(tt.term))
		})
	}
}

func TestResources(t *testing.T) {
	tests := []struct {
		name     string
		resource Resource
		want     string
	}{
		{"ports", IO(0x3f8, 8), "47 01 f8 03 f8 03 01 08"},
		{"lowest interrupt", IRQ(0), "22 01 00"},
		{"interrupt", IRQ(4), "22 10 00"},
		{"highest interrupt", IRQ(15), "22 00 80"},
		{"fixed memory", Memory32Fixed(0xe000_0000, 0x10_0000), "86 09 00 01 00 00 00 e0 00 00 10 00"},
		{"buses", BusWindow(0, 255), "88 0d 00 02 0c 00 00 00 00 00 ff 00 00 00 00 01"},
		{"port window", IOWindow(0x1000, 0xffff), "88 0d 00 01 0c 03 00 00 00 10 ff ff 00 00 00 f0"},
		{"memory window", MemoryWindow32(0xc000_0000, 0x2000_0000),
			"87 17 00 00 0c 01 00000000 000000c0 ffffffdf 00000000 00000020"},
		{"memory window, 64 bits", MemoryWindow64(0x1_4000_0000, 0x10_0000_0000),
			"8a 2b 00 00 0c 01 0000000000000000 0000004001000000 ffffff3f11000000 0000000000000000 0000000010000000"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, unhex(t, tt.want), []byte(tt.resource))
		})
	}
	require.Equal(t, unhex(t, "11 10 0a 0d 47 01 70 00 70 00 01 02 22 00 01 79 00"),
		[]byte(ResourceTemplate(IO(0x70, 2), IRQ(8))))
}

// The length counts its own bytes, so that each encoding ends a little before its bits do.
func TestPkgLength(t *testing.T) {
	tests := []struct {
		body int
		want string
	}{
		{0, "01"},
		{62, "3f"},
		{63, "41 04"},
		{4093, "4f ff"},
		{4094, "81 00 01"},
		{1<<20 - 4, "8f ff ff"},
		{1<<20 - 3, "c1 00 00 01"},
		{1<<28 - 5, "cf ff ff ff"},
	}
	for _, tt := range tests {
		require.Equal(t, unhex(t, tt.want), []byte(pkgLength(tt.body)), "%d bytes", tt.body)
	}
	require.Panics(t, func() { pkgLength(1<<28 - 4) })

	long := Buffer(make([]byte, 4096))
	require.Equal(t, unhex(t, "11 86 00 01 0b 00 10"), []byte(long[:7]))
	require.Len(t, long, 1+0x1006)
}

func TestBugsPanic(t *testing.T) {
	tests := []struct {
		name string
		bug  func()
	}{
		{"empty name", func() { Path("") }},
		{"root alone", func() { Path(`\`) }},
		{"empty segment", func() { Path("A..B") }},
		{"five letters", func() { Path("PCI00") }},
		{"small letters", func() { Path("pci0") }},
		{"leading digit", func() { Path("0PCI") }},
		{"dash", func() { Path("A-B") }},
		{"short EISA identifier", func() { EISAID("PNP") }},
		{"EISA identifier with digits for letters", func() { EISAID("PN10501") }},
		{"EISA identifier with letters for digits", func() { EISAID("PNP05G1") }},
		{"short UUID", func() { UUID("33db4d5b-1ff7-401c-9657") }},
		{"UUID of letters", func() { UUID(strings.Repeat("z", 32)) }},
		{"string with a NUL", func() { String("A\x00B") }},
		{"string beyond ASCII", func() { String("é") }},
		{"package of 256", func() { Package(make([]Term, 256)...) }},
		{"method with eight arguments", func() { Method("FOO", 8) }},
		{"interrupt beyond the PICs", func() { IRQ(16) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { require.Panics(t, tt.bug) })
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	require.NoError(t, err)
	return b
}
