package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// settings are the parts of a device flag's value: "first,key=value,key". A comma inside a part is written twice, as for
// QEMU.
type settings struct {
	first  string
	values map[string]string
}

// parseSettings takes s apart. A key without a value means key=on.
func parseSettings(s string, keys ...string) (settings, error) {
	const comma = "\x00" // in no argument of a process
	parts := strings.Split(strings.ReplaceAll(s, ",,", comma), ",")
	for i := range parts {
		parts[i] = strings.ReplaceAll(parts[i], comma, ",")
	}
	out := settings{first: parts[0], values: map[string]string{}}
	for _, part := range parts[1:] {
		key, value, hasValue := strings.Cut(part, "=")
		_, twice := out.values[key]
		switch {
		case !slices.Contains(keys, key):
			return out, fmt.Errorf("%q: no such setting (there are %s)", key, strings.Join(keys, ", "))
		case twice:
			return out, fmt.Errorf("%s: given twice", key)
		case !hasValue:
			value = "on"
		}
		out.values[key] = value
	}
	return out, nil
}

// flag reads on or off.
func (s settings) flag(key string, to *bool) error {
	switch value, given := s.values[key]; {
	case !given:
	case value == "on":
		*to = true
	case value == "off":
		*to = false
	default:
		return fmt.Errorf("%s=%s: not on or off", key, value)
	}
	return nil
}

// number reads a number from least to most.
func (s settings) number(key string, least, most int, to *int) error {
	value, given := s.values[key]
	if !given {
		return nil
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < least || n > most {
		return fmt.Errorf("%s=%s: not a number from %d to %d", key, value, least, most)
	}
	*to = n
	return nil
}

// choice reads one of the names, whose place it returns.
func (s settings) choice(key string, names []string, to *int) error {
	value, given := s.values[key]
	if !given {
		return nil
	}
	i := slices.Index(names, value)
	if i < 0 {
		return fmt.Errorf("%s=%s: not one of %s", key, value, strings.Join(names, ", "))
	}
	*to = i
	return nil
}
