// Package aml writes ACPI Machine Language, the byte code of the DSDT (ACPI 6.5 §20), as far as the tables of a virtual
// machine need it. Each function returns the encoding of one term, so that nested calls read like the ASL they stand for:
//
//	aml.Device("COM1",
//		aml.Name("_HID", aml.EISAID("PNP0501")),
//		aml.Name("_CRS", aml.ResourceTemplate(aml.IO(0x3f8, 8), aml.IRQ(4))))
//
// Names, identifiers and the number of elements are the program's own, never a guest's: what cannot be encoded is a bug,
// and panics.
package aml

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// Term is an encoded term: an object, a statement or an expression.
type Term []byte

// Opcodes (ACPI 6.5 §20.3).
const (
	opZero             = 0x00
	opOne              = 0x01
	opName             = 0x08
	opByte             = 0x0a
	opWord             = 0x0b
	opDWord            = 0x0c
	opString           = 0x0d
	opQWord            = 0x0e
	opScope            = 0x10
	opBuffer           = 0x11
	opPackage          = 0x12
	opMethod           = 0x14
	opExt              = 0x5b // the opcode is the next byte
	opLocal0           = 0x60
	opArg0             = 0x68
	opStore            = 0x70
	opAnd              = 0x7b
	opOr               = 0x7d
	opCreateDWordField = 0x8a
	opLNot             = 0x92
	opLEqual           = 0x93
	opIf               = 0xa0
	opElse             = 0xa1
	opReturn           = 0xa4

	extDevice = 0x82
)

// Integer is an integer constant, in the shortest of the encodings that hold v.
func Integer(v uint64) Term {
	le := binary.LittleEndian
	switch {
	case v == 0:
		return Term{opZero}
	case v == 1:
		return Term{opOne}
	case v <= 0xff:
		return Term{opByte, byte(v)}
	case v <= 0xffff:
		return le.AppendUint16(Term{opWord}, uint16(v))
	case v <= 0xffff_ffff:
		return le.AppendUint32(Term{opDWord}, uint32(v))
	}
	return le.AppendUint64(Term{opQWord}, v)
}

// String is a string constant of ASCII characters.
func String(s string) Term {
	for _, c := range []byte(s) {
		if c < 0x01 || c > 0x7f {
			panic(fmt.Sprintf("aml: %q is no ASCII string", s))
		}
	}
	return join(Term{opString}, Term(s), Term{0})
}

// Buffer is a buffer with these bytes in it.
func Buffer(b []byte) Term {
	return packaged(Term{opBuffer}, Integer(uint64(len(b))), b)
}

// Package is a list of objects, at most 255.
func Package(elements ...Term) Term {
	if len(elements) > 0xff {
		panic(fmt.Sprintf("aml: a package of %d elements", len(elements)))
	}
	return packaged(Term{opPackage}, Term{byte(len(elements))}, join(elements...))
}

// EISAID is a compressed EISA identifier such as PNP0A03: three letters and four hexadecimal digits (EISAID, ACPI 6.5 §19.6.37).
func EISAID(id string) Term {
	var digits []byte
	if len(id) == 7 && strings.Trim(id[:3], upper) == "" {
		digits, _ = hex.DecodeString(id[3:])
	}
	if len(digits) != 2 {
		panic(fmt.Sprintf("aml: %q is no EISA identifier", id))
	}
	var letters uint16 // five bits each
	for _, c := range []byte(id[:3]) {
		letters = letters<<5 | uint16(c-'A'+1)
	}
	// The identifier is big-endian, the integer that holds it little-endian.
	return Term{opDWord, byte(letters >> 8), byte(letters), digits[0], digits[1]}
}

// UUID is the buffer for aabbccdd-eeff-gghh-iijj-kkllmmnnoopp. The first three fields are little-endian, the other two
// are not (ToUUID, ACPI 6.5 §19.6.142).
func UUID(s string) Term {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if len(b) != 16 || err != nil {
		panic(fmt.Sprintf("aml: %q is no UUID", s))
	}
	return Buffer([]byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]})
}

// Name gives a name to an object.
func Name(name string, value Term) Term { return join(Term{opName}, Path(name), value) }

// Scope adds to the object of that name.
func Scope(name string, body ...Term) Term {
	return packaged(Term{opScope}, Path(name), join(body...))
}

// Device is a device.
func Device(name string, body ...Term) Term {
	return packaged(Term{opExt, extDevice}, Path(name), join(body...))
}

// Method is a serialized method: one caller at a time is in it.
func Method(name string, args int, body ...Term) Term {
	const (
		maxArgs    = 7
		serialized = 1 << 3
	)
	if args < 0 || args > maxArgs {
		panic(fmt.Sprintf("aml: method %s with %d arguments", name, args))
	}
	return packaged(Term{opMethod}, Path(name), Term{byte(args) | serialized}, join(body...))
}

// Arg is argument n of a method, 0 to 6.
func Arg(n int) Term { return Term{opArg0 + byte(n)} }

// Local is local variable n of a method, 0 to 7.
func Local(n int) Term { return Term{opLocal0 + byte(n)} }

// Store copies a value.
func Store(value, to Term) Term { return join(Term{opStore}, value, to) }

// And stores the bitwise and of a and b.
func And(a, b, to Term) Term { return join(Term{opAnd}, a, b, to) }

// Or stores the bitwise or of a and b.
func Or(a, b, to Term) Term { return join(Term{opOr}, a, b, to) }

// Equal is true if a and b are equal: two integers, or two buffers.
func Equal(a, b Term) Term { return join(Term{opLEqual}, a, b) }

// NotEqual is true if they are not.
func NotEqual(a, b Term) Term { return join(Term{opLNot}, Equal(a, b)) }

// If executes body where the condition is true.
func If(condition Term, body ...Term) Term { return packaged(Term{opIf}, condition, join(body...)) }

// Else follows an [If], and executes body where its condition is not.
func Else(body ...Term) Term { return packaged(Term{opElse}, join(body...)) }

// Return leaves a method with a value.
func Return(value Term) Term { return join(Term{opReturn}, value) }

// CreateDWordField gives a name to the 32 bits at a byte offset in a buffer.
func CreateDWordField(buffer Term, offset uint64, name string) Term {
	return join(Term{opCreateDWordField}, buffer, Integer(offset), Path(name))
}
