package bootdisk

import "strings"

// compareVersions compares as the version format of the UAPI group's says
// (https://uapi-group.org/specifications/specs/version_format_specification/): negative if a is older than b.
func compareVersions(a, b string) int {
	for {
		a, b = trimOther(a), trimOther(b)
		// What comes before a release is marked by a tilde.
		if c := marked(&a, &b, '~'); c != 0 || a == "" && b == "" {
			return c
		}
		if a == "" || b == "" {
			return len(a) - len(b)
		}
		for _, mark := range []byte{'-', '^', '.'} {
			if c := marked(&a, &b, mark); c != 0 {
				return c
			}
		}
		if a == "" || b == "" {
			continue
		}
		var x, y string
		if isDigit(a[0]) || isDigit(b[0]) {
			x, a = span(a, isDigit)
			y, b = span(b, isDigit)
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if len(x) != len(y) {
				return len(x) - len(y)
			}
		} else {
			x, a = span(a, isLetter)
			y, b = span(b, isLetter)
		}
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
	}
}

// marked takes the mark off both; if only one has it, that is the older.
func marked(a, b *string, mark byte) int {
	x, y := strings.HasPrefix(*a, string(mark)), strings.HasPrefix(*b, string(mark))
	switch {
	case x && y:
		*a, *b = (*a)[1:], (*b)[1:]
	case x:
		return -1
	case y:
		return 1
	}
	return 0
}

func isDigit(c byte) bool  { return c >= '0' && c <= '9' }
func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }

// trimOther drops what the format gives no meaning.
func trimOther(s string) string {
	return strings.TrimLeftFunc(s, func(r rune) bool {
		return r >= 0x80 || !isDigit(byte(r)) && !isLetter(byte(r)) && !strings.ContainsRune("-.~^", r)
	})
}

func span(s string, in func(byte) bool) (string, string) {
	n := 0
	for n < len(s) && in(s[n]) {
		n++
	}
	return s[:n], s[n:]
}
