package main

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"strconv"
	"strings"
	"time"

	"vmm/machine"
)

// memorySize is the value of -mem, in bytes.
type memorySize uint64

var errNotASize = errors.New("not a size (use for example 512M or 2G)")

// Set reads a number with a unit, K, M, G or T (powers of 1024). Without one it counts MiB, as for QEMU.
func (m *memorySize) Set(s string) error {
	digits := strings.TrimRight(s, "kKmMgGtT")
	shift := 20
	switch unit := s[len(digits):]; strings.ToUpper(unit) {
	case "", "M":
	case "K":
		shift = 10
	case "G":
		shift = 30
	case "T":
		shift = 40
	default:
		return errNotASize
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange) || bits.LeadingZeros64(n) < shift:
		return errors.New("more than any machine can address")
	case err != nil:
		return errNotASize
	case n == 0:
		return errors.New("a machine needs memory (use for example 512M or 2G)")
	}
	*m = memorySize(n << shift)
	return nil
}

// String is the size in the largest unit that divides it.
func (m *memorySize) String() string {
	n, unit := uint64(*m)>>10, 0
	for ; unit < 3 && n > 0 && n%1024 == 0; unit++ {
		n /= 1024
	}
	return strconv.FormatUint(n, 10) + "KMGT"[unit:unit+1]
}

// Type is the value's name in pflag's terms.
func (m *memorySize) Type() string { return "size" }

// cpuCount is the value of -cpus.
type cpuCount int

// Set reads a decimal number.
func (c *cpuCount) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > machine.MaxCPUs {
		return fmt.Errorf("not a number from 1 to %d", machine.MaxCPUs)
	}
	*c = cpuCount(n)
	return nil
}

func (c *cpuCount) String() string { return strconv.Itoa(int(*c)) }

// Type is the value's name in pflag's terms.
func (c *cpuCount) Type() string { return "number" }

// gracePeriod is the value of -grace.
type gracePeriod time.Duration

// Set reads a number of seconds, or a duration as Go writes it.
func (g *gracePeriod) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil {
		d, err = time.ParseDuration(s + "s")
	}
	if err != nil || d < 0 {
		return errors.New("not a time (use for example 30s or 2m)")
	}
	*g = gracePeriod(d)
	return nil
}

func (g *gracePeriod) String() string { return time.Duration(*g).String() }

// Type is the value's name in pflag's terms.
func (g *gracePeriod) Type() string { return "time" }

// machineName is the value of -name.
type machineName string

// maxName is what fits as a host name (RFC 1035, section 2.3.4).
const maxName = 63

// Set reads a name that can be a host's.
func (n *machineName) Set(s string) error {
	valid := s != "" && len(s) <= maxName && s[0] != '-' && s[len(s)-1] != '-'
	for _, c := range []byte(s) {
		valid = valid && (c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '-')
	}
	if !valid {
		return fmt.Errorf("not a name (use at most %d letters, digits and hyphens)", maxName)
	}
	*n = machineName(s)
	return nil
}

func (n *machineName) String() string { return string(*n) }

// Type is the value's name in pflag's terms.
func (n *machineName) Type() string { return "name" }

// apply has the process listed under the name, by ps(1) and the like.
func (n *machineName) apply() {
	if *n != "" {
		_ = os.WriteFile("/proc/self/comm", []byte("vmm:"+*n), 0) // a convenience: the kernel cuts it after 15 bytes
	}
}
