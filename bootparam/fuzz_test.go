package bootparam

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/memory"
)

func FuzzBzImage(f *testing.F) {
	small := linuxImage()
	f.Add(small.bytes())
	small.relocatable, small.xloadflags = 0, 0
	f.Add(small.bytes())
	small.version, small.jump = minVersion, 0x3a
	f.Add(small.bytes()[:0x300])
	f.Fuzz(requireSafe)
}

func FuzzELF(f *testing.F) {
	f.Add(vmlinux().bytes())
	f.Add(vmlinux(noteSegment(4, pvhNotes(4, []byte{0x80, 0, 0x10, 0}))).bytes())
	f.Add(vmlinux(noteSegment(8, pvhNotes(8, []byte{0x80, 0, 0x10, 0, 0, 0, 0, 0}))).bytes()[:0x400])
	f.Fuzz(requireSafe)
}

// requireSafe loads a file of any content, with an initrd, and checks that nothing is written outside of RAM, and that
// what was loaded lies where it can be used and without overlap.
func requireSafe(t *testing.T, file []byte) {
	const size = 2 * mebi
	mem, e820 := pcMemory(t, size)
	// The RAM above 1 MiB is in two pieces, to make it harder.
	e820[3].Size = 0x8_0000
	e820 = append(e820, E820Entry{0x18_1000, size - 0x18_1000, E820RAM})
	initrd := pattern(7, 5000)

	entry, err := Load(mem, Config{
		Kernel:  bytes.NewReader(file),
		Initrd:  bytes.NewReader(initrd),
		Cmdline: "quiet",
		E820:    e820,
	})
	for _, hole := range []span{{0, lowStart}, {0x9_fc00, 1 * mebi}, {0x18_0000, 0x18_1000}} {
		require.True(t, untouched(guestBytes(t, mem, hole.start, hole.size())), "%v isn't RAM", hole)
	}
	if err != nil {
		var inputErr *Error
		require.ErrorAs(t, err, &inputErr)
		return
	}

	ram := findRAM(mem, e820)
	k, err := findKernel(bytes.NewReader(file), ram.without(span{0, lowEnd}))
	require.NoError(t, err)
	place, err := k.placeInitrd(int64(len(initrd)), ram.without(span{0, lowEnd}))
	require.NoError(t, err)
	free := ram.without(span{0, lowEnd})
	for _, s := range append(k.segments, segment{span: place}) {
		require.True(t, free.contains(s.span), "%v isn't free", s.span)
		require.LessOrEqual(t, s.size+s.zero, s.span.size())
		free = free.without(s.span)
	}
	require.True(t, k.holds(memory.GPA(entry.RIP)), "entry point %#x", entry.RIP)
	require.Equal(t, initrd, guestBytes(t, mem, place.start, place.size()))
	for _, s := range k.segments {
		require.Equal(t, file[s.off:][:s.size], guestBytes(t, mem, s.start, s.size))
	}
	require.Equal(t, "quiet\x00", string(guestBytes(t, mem, cmdlineAddr, 6)))
}
