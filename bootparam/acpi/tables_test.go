package acpi

import (
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/memory"
)

var update = flag.Bool("update", false, "write the golden files")

// testConfig describes a machine with processors of these local APIC IDs.
func testConfig(ids ...uint32) Config {
	return Config{
		Base:          0xe_0000,
		LAPICIDs:      ids,
		LocalAPICAddr: 0xfee0_0000,
		IOAPICAddr:    0xfec0_0000,
		SCI:           9,
		PM:            PM{Event: 0x600, Control: 0x604, Timer: 0x608},
		Reset:         Reset{Port: 0x60c, Value: 1},
		SleepTypeS5:   5,
		ECAM:          Range{0xe000_0000, 1 << 20},
		IO:            Range{0x1000, 0xf000},
		MMIO32:        Range{0xc000_0000, 0x2000_0000},
		MMIO64:        Range{0x1_0000_0000, 64 << 30},
		INTxGSI:       [4]uint8{16, 17, 18, 19},
		COM1:          Port{Start: 0x3f8, Size: 8, IRQ: 4},
		RTC:           Port{Start: 0x70, Size: 2, IRQ: 8},
	}
}

func upTo(n uint32) []uint32 {
	var ids []uint32
	for id := range n {
		ids = append(ids, id)
	}
	return ids
}

// machines are those whose tables are compared with golden files, and given to the reference implementation.
func machines() map[string]Config {
	// No clock, no serial port, no 64-bit window, all the buses.
	least := testConfig(0)
	least.COM1, least.RTC, least.MMIO64 = Port{}, Port{}, Range{}
	least.ECAM.Size = 256 << 20
	return map[string]Config{
		"1-cpu":   testConfig(0),
		"2-cpus":  testConfig(0, 1),
		"64-cpus": testConfig(upTo(64)...),
		"x2apic":  testConfig(0, 1, 254, 255, 256),
		"least":   least,
	}
}

// walk follows the addresses from the RSDP on, as a guest does, and returns the tables by signature. It checks each
// checksum and alignment on the way.
func walk(t *testing.T, base memory.GPA, tables Tables) map[string][]byte {
	t.Helper()
	le := binary.LittleEndian
	at := func(addr, n uint64) []byte {
		require.GreaterOrEqual(t, addr, uint64(base))
		off := addr - uint64(base)
		require.LessOrEqual(t, off+n, uint64(len(tables.Bytes)), "table at %#x", addr)
		return tables.Bytes[off : off+n]
	}
	sum := func(b []byte) (s byte) {
		for _, v := range b {
			s += v
		}
		return s
	}
	header := func(addr uint64) []byte {
		b := at(addr, uint64(le.Uint32(at(addr, 8)[4:])))
		require.Zero(t, sum(b), "checksum of %q", b[:4])
		return b
	}
	found := make(map[string][]byte)
	rsdp := at(uint64(tables.RSDP), 36)
	require.Zero(t, tables.RSDP%16)
	require.Equal(t, "RSD PTR ", string(rsdp[:8]))
	require.Zero(t, sum(rsdp[:20]))
	require.Zero(t, sum(rsdp))
	found["RSDP"] = rsdp
	root := header(le.Uint64(rsdp[24:]))
	require.Equal(t, "XSDT", string(root[:4]))
	found["XSDT"] = root
	for entries := root[36:]; len(entries) > 0; entries = entries[8:] {
		b := header(le.Uint64(entries))
		found[string(b[:4])] = b
	}
	fadt := found["FACP"]
	require.NotNil(t, fadt)
	dsdt := le.Uint64(fadt[140:])
	require.Equal(t, dsdt, uint64(le.Uint32(fadt[40:])))
	found["DSDT"] = header(dsdt)
	facs := uint64(le.Uint32(fadt[36:]))
	require.Zero(t, facs%64)
	found["FACS"] = at(facs, 64)
	return found
}

func TestBuildGolden(t *testing.T) {
	for name, cfg := range machines() {
		t.Run(name, func(t *testing.T) {
			tables, err := Build(cfg)
			require.NoError(t, err)
			require.Equal(t, cfg.Base, tables.RSDP)
			require.LessOrEqual(t, len(tables.Bytes), 0x2_0000, "all of it fits between 0xE0000 and 1 MiB")

			found := walk(t, cfg.Base, tables)
			var got strings.Builder
			for _, signature := range slices.Sorted(maps.Keys(found)) {
				fmt.Fprintf(&got, "%s\n%s\n", signature, hex.Dump(found[signature]))
			}
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(got.String()), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), got.String())
		})
	}
}

func TestBuildMostProcessors(t *testing.T) {
	cfg := testConfig(upTo(4096)...)
	tables, err := Build(cfg)
	require.NoError(t, err)
	found := walk(t, cfg.Base, tables)
	require.Contains(t, string(found["DSDT"]), "CFFF")
	const header, localAPICs, x2APICs, ioapic, overrides, nmis = 44, 255 * 8, (4096 - 255) * 16, 12, 2 * 10, 6 + 12
	require.Len(t, found["APIC"], header+localAPICs+x2APICs+ioapic+overrides+nmis)
}

func TestBuildErrors(t *testing.T) {
	tests := []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Base = 0xe_0010 }, "base 0xe0010 is not a multiple of 64"},
		{func(c *Config) { c.Base = 0xffff_ffc0 }, "at 0xffffffc0 they end beyond 4 GiB"},
		{func(c *Config) { c.Base = 0xffff_ffff_ffff_ffc0 }, "base 0xffffffffffffffc0 is not below 4 GiB"},
		{func(c *Config) { c.LAPICIDs = nil }, "0 processors, not 1 to 4096"},
		{func(c *Config) { c.LAPICIDs = upTo(4097) }, "4097 processors, not 1 to 4096"},
		{func(c *Config) { c.LAPICIDs = []uint32{0, 1, 1} }, "local APIC ID 1 after 1"},
		{func(c *Config) { c.LAPICIDs = []uint32{1, 0} }, "local APIC ID 0 after 1"},
		{func(c *Config) { c.SCI = 16 }, "ISA interrupt 16"},
		{func(c *Config) { c.COM1.IRQ = 17 }, "ISA interrupt 17"},
		{func(c *Config) { c.RTC.IRQ = 18 }, "ISA interrupt 18"},
		{func(c *Config) { c.PM.Event = 0 }, "fixed hardware at port 0"},
		{func(c *Config) { c.PM.Control = 0 }, "fixed hardware at port 0"},
		{func(c *Config) { c.PM.Timer = 0 }, "fixed hardware at port 0"},
		{func(c *Config) { c.Reset.Port = 0 }, "fixed hardware at port 0"},
		{func(c *Config) { c.SleepTypeS5 = 8 }, "sleep type 8 has more than 3 bits"},
		{func(c *Config) { c.ECAM.Size = 0 }, "ECAM [0xe0000000, +0x0) is not for 1 to 256 buses below 4 GiB"},
		{func(c *Config) { c.ECAM.Size = 1 << 19 }, "ECAM"},
		{func(c *Config) { c.ECAM = Range{0x8000_0000, 257 << 20} }, "ECAM"},
		{func(c *Config) { c.ECAM.Start = 0xe008_0000 }, "ECAM"},
		{func(c *Config) { c.ECAM.Start = 1 << 32 }, "ECAM"},
		{func(c *Config) { c.ECAM = Range{0xfff0_0000, 2 << 20} }, "ECAM"},
		{func(c *Config) { c.ECAM.Start = 1<<64 - mib }, "ECAM"},
		{func(c *Config) { c.IO.Size = 0 }, "PCI ports [0x1000, +0x0)"},
		{func(c *Config) { c.IO = Range{0xcf8, 0x100} }, "PCI ports"},
		{func(c *Config) { c.IO.Size = 0xf001 }, "PCI ports"},
		{func(c *Config) { c.MMIO32.Size = 1 << 32 }, "32-bit PCI memory"},
		{func(c *Config) { c.MMIO32 = Range{0, 1 << 32} }, "32-bit PCI memory"},
		{func(c *Config) { c.MMIO64.Start = 3 << 30 }, "64-bit PCI memory [0xc0000000, +0x1000000000) is not above 4 GiB"},
		{func(c *Config) { c.MMIO64.Size = ^uint64(0) }, "64-bit PCI memory"},
		{func(c *Config) { c.INTxGSI[3] = 24 }, "PCI interrupt at GSI 24 of an I/O APIC with 24 pins"},
	}
	for _, tt := range tests {
		cfg := testConfig(0)
		tt.change(&cfg)
		_, err := Build(cfg)
		require.ErrorContains(t, err, tt.want)
	}
}
