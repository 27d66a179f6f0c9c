package aml

import (
	"fmt"
	"strings"
)

// What a segment of a name starts with, and what it goes on with.
const (
	upper     = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	leadChars = upper + "_"
	nameChars = leadChars + "0123456789"
)

const (
	segmentSize = 4

	rootPrefix      = '\\'
	dualNamePrefix  = 0x2e
	multiNamePrefix = 0x2f // the number of segments is the next byte
)

// Path refers to an object by its name, such as \_SB.PCI0 or CDW1 (NameString, ACPI 6.5 §20.2.2).
func Path(name string) Term {
	rest, absolute := strings.CutPrefix(name, string(rootPrefix))
	segments := strings.Split(rest, ".")
	var out Term
	if absolute {
		out = Term{rootPrefix}
	}
	switch n := len(segments); {
	case n == 2:
		out = append(out, dualNamePrefix)
	case n > 2:
		out = append(out, multiNamePrefix, byte(n))
	}
	for _, s := range segments {
		if s == "" || len(s) > segmentSize || strings.Trim(s, nameChars) != "" || !strings.Contains(leadChars, s[:1]) {
			panic(fmt.Sprintf("aml: %q is no name", name))
		}
		out = append(out, s+"____"[len(s):]...)
	}
	return out
}

// packaged is a term whose length is part of it: opcode, length, the rest.
func packaged(op Term, parts ...Term) Term {
	body := join(parts...)
	return join(op, pkgLength(len(body)), body)
}

// pkgLength encodes the length of a body and of the encoding itself, in one to four bytes (PkgLength, ACPI 6.5 §20.2.4).
// The top two bits of the first byte say how many follow. If none does, the other six are the length; else the low four
// of them are its low bits, and each byte that follows has eight more.
func pkgLength(body int) Term {
	const maxFollowing = 3
	if n := body + 1; n < 1<<6 {
		return Term{byte(n)}
	}
	for following := 1; following <= maxFollowing; following++ {
		n := body + 1 + following
		if n >= 1<<(4+8*following) {
			continue
		}
		out := Term{byte(following<<6 | n&0xf)}
		for n >>= 4; len(out) <= following; n >>= 8 {
			out = append(out, byte(n))
		}
		return out
	}
	panic(fmt.Sprintf("aml: a term of %d bytes", body))
}

func join(terms ...Term) Term {
	var out Term
	for _, t := range terms {
		out = append(out, t...)
	}
	return out
}
