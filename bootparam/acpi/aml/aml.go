// Package aml writes ACPI Machine Language, the byte code of the DSDT (ACPI 6.5 §20), as far as the tables of a virtual
// machine need it. Each function returns the encoding of one term, so that nested calls read like the ASL they stand for:
//
//	aml.Device("COM1",
//		aml.Name("_HID", aml.EISAID("PNP0501")),
//		aml.Name("_CRS", aml.ResourceTemplate(aml.IO(0x3f8, 8), aml.IRQ(4))))
//
// The arguments are constants of the program: a malformed name is a bug, and panics.
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
	opDualName         = 0x2e
	opMultiName        = 0x2f
	opExt              = 0x5b
	opLocal0           = 0x60
	opArg0             = 0x68
	opStore            = 0x70
	opAnd              = 0x7b
	opOr               = 0x7d
	opCreateDWordField = 0x8a
	opNot              = 0x92
	opEqual            = 0x93
	opIf               = 0xa0
	opElse             = 0xa1
	opReturn           = 0xa4
	extDevice          = 0x82
)

// Integer is the shortest encoding of v.
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
func String(s string) Term { return append(append(Term{opString}, s...), 0) }

// Buffer is a buffer of the bytes given.
func Buffer(b []byte) Term {
	return packaged(Term{opBuffer}, Integer(uint64(len(b))), b)
}

// EISAID is a compressed EISA identifier such as PNP0A03: three letters and four hexadecimal digits (ACPI 6.5 §19.6.37).
func EISAID(id string) Term {
	digits, err := hex.DecodeString(id[3:])
	if len(id) != 7 || err != nil {
		panic(fmt.Sprintf("aml: %q is no EISA identifier", id))
	}
	var letters uint16 // five bits each
	for _, c := range id[:3] {
		letters = letters<<5 | uint16(c-'@')
	}
	// The identifier is big-endian, in an integer that is little-endian.
	return Term{opDWord, byte(letters >> 8), byte(letters), digits[0], digits[1]}
}

// UUID is the buffer that ToUUID makes of aabbccdd-eeff-gghh-iijj-kkllmmnnoopp (ACPI 6.5 §19.6.142): the first three
// fields are little-endian.
func UUID(s string) Term {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if len(b) != 16 || err != nil {
		panic(fmt.Sprintf("aml: %q is no UUID", s))
	}
	return Buffer([]byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]})
}

// Name gives an object a name.
func Name(name string, value Term) Term { return join(Term{opName}, namePath(name), value) }

// Path refers to the object of that name.
func Path(name string) Term { return namePath(name) }

// Scope adds to the object of that name.
func Scope(name string, body ...Term) Term {
	return packaged(Term{opScope}, namePath(name), join(body...))
}

// Device is a device.
func Device(name string, body ...Term) Term {
	return packaged(Term{opExt, extDevice}, namePath(name), join(body...))
}

// Package is a list of at most 255 objects.
func Package(elements ...Term) Term {
	if len(elements) > 0xff {
		panic(fmt.Sprintf("aml: a package of %d elements", len(elements)))
	}
	return packaged(Term{opPackage}, Term{byte(len(elements))}, join(elements...))
}

// Method is a serialized method: one caller at a time may be in it.
func Method(name string, args int, body ...Term) Term {
	const serialized = 1 << 3
	return packaged(Term{opMethod}, namePath(name), Term{byte(args&7 | serialized)}, join(body...))
}

// Arg is a method's argument n, Local its local variable n.
func Arg(n int) Term { return Term{opArg0 + byte(n)} }

// Local is a method's local variable n.
func Local(n int) Term { return Term{opLocal0 + byte(n)} }

// Store copies a value.
func Store(value, to Term) Term { return join(Term{opStore}, value, to) }

// And stores the bitwise and of a and b.
func And(a, b, to Term) Term { return join(Term{opAnd}, a, b, to) }

// Or stores the bitwise or of a and b.
func Or(a, b, to Term) Term { return join(Term{opOr}, a, b, to) }

// Equal compares.
func Equal(a, b Term) Term { return join(Term{opEqual}, a, b) }

// NotEqual compares.
func NotEqual(a, b Term) Term { return join(Term{opNot}, Equal(a, b)) }

// If executes body if the condition is true.
func If(condition Term, body ...Term) Term { return packaged(Term{opIf}, condition, join(body...)) }

// Else follows an [If].
func Else(body ...Term) Term { return packaged(Term{opElse}, join(body...)) }

// Return leaves a method.
func Return(value Term) Term { return join(Term{opReturn}, value) }

// CreateDWordField names the 32 bits of a buffer at a byte offset.
func CreateDWordField(buffer Term, offset uint64, name string) Term {
	return join(Term{opCreateDWordField}, buffer, Integer(offset), namePath(name))
}

// namePath encodes a path such as \_SB.PCI0 (ACPI 6.5 §20.2.2).
func namePath(path string) Term {
	var out Term
	rest, absolute := strings.CutPrefix(path, `\`)
	if absolute {
		out = Term{'\\'}
	}
	segments := strings.Split(rest, ".")
	switch {
	case len(segments) == 2:
		out = append(out, opDualName)
	case len(segments) > 2:
		out = append(out, opMultiName, byte(len(segments)))
	}
	for _, s := range segments {
		if len(s) == 0 || len(s) > 4 || strings.Trim(s, "_ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") != "" || s[0] <= '9' {
			panic(fmt.Sprintf("aml: %q is no name", path))
		}
		out = append(out, s+"____"[len(s):]...)
	}
	return out
}

// packaged puts the length of what follows the opcode, and its own, before it (PkgLength, ACPI 6.5 §20.2.4).
func packaged(op Term, parts ...Term) Term {
	body := join(parts...)
	switch n := len(body); {
	case n+1 <= 0x3f:
		return join(op, Term{byte(n + 1)}, body)
	case n+2 <= 0xfff:
		n += 2
		return join(op, Term{1<<6 | byte(n&0xf), byte(n >> 4)}, body)
	case n+3 <= 0xf_ffff:
		n += 3
		return join(op, Term{2<<6 | byte(n&0xf), byte(n >> 4), byte(n >> 12)}, body)
	default:
		n += 4
		return join(op, Term{3<<6 | byte(n&0xf), byte(n >> 4), byte(n >> 12), byte(n >> 20)}, body)
	}
}

func join(terms ...Term) Term {
	var out Term
	for _, t := range terms {
		out = append(out, t...)
	}
	return out
}
