package acpi

import (
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/memory"
)

var update = flag.Bool("update", false, "write the golden files")

func testConfig(cpus int) Config {
	cfg := Config{
		Base:          0xe_0000,
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
	for id := range cpus {
		cfg.LAPICIDs = append(cfg.LAPICIDs, uint32(id))
	}
	return cfg
}

// walk follows the addresses from the RSDP on, as a guest does, and returns the tables by signature. It checks each
// checksum and alignment on the way.
func walk(t *testing.T, base memory.GPA, tables Tables) map[string][]byte {
	t.Helper()
	le := binary.LittleEndian
	at := func(addr, n uint64) []byte {
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
	rsdp := at(uint64(tables.RSDP), 36)
	require.Zero(t, tables.RSDP%16)
	require.Equal(t, "RSD PTR ", string(rsdp[:8]))
	require.Zero(t, sum(rsdp[:20]))
	require.Zero(t, sum(rsdp))
	found := make(map[string][]byte)
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
	for _, cpus := range []int{1, 2, 64} {
		cfg := testConfig(cpus)
		tables, err := Build(cfg)
		require.NoError(t, err)
		require.Equal(t, cfg.Base, tables.RSDP)
		for signature, b := range walk(t, cfg.Base, tables) {
			name := fmt.Sprintf("testdata/%s-%d.golden", strings.ToLower(signature), cpus)
			got := hex.Dump(b)
			if *update {
				require.NoError(t, os.WriteFile(name, []byte(got), 0o644))
			}
			want, err := os.ReadFile(name)
			require.NoError(t, err)
			require.Equal(t, string(want), got, name)
		}
	}
}

func TestBuildFitsBelowOneMiB(t *testing.T) {
	tables, err := Build(testConfig(64))
	require.NoError(t, err)
	require.LessOrEqual(t, len(tables.Bytes), 0x2_0000)
}

func TestBuildErrors(t *testing.T) {
	tests := []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Base = 0xe_0010 }, "base 0xe0010 is not a multiple of 64"},
		{func(c *Config) { c.Base = 0xffff_ffc0 }, "beyond 4 GiB"},
		{func(c *Config) { c.LAPICIDs = nil }, "0 processors"},
		{func(c *Config) { c.LAPICIDs = make([]uint32, 256) }, "256 processors"},
		{func(c *Config) { c.LAPICIDs = []uint32{255} }, "local APIC ID 255"},
		{func(c *Config) { c.ECAM.Size = 1 << 19 }, "ECAM"},
		{func(c *Config) { c.ECAM.Start = 1 << 32 }, "ECAM"},
		{func(c *Config) { c.IO.Size = 0 }, "PCI ports"},
		{func(c *Config) { c.MMIO32.Size = 1 << 32 }, "32-bit PCI memory"},
		{func(c *Config) { c.MMIO64.Size = ^uint64(0) }, "64-bit PCI memory"},
	}
	for _, tt := range tests {
		cfg := testConfig(1)
		tt.change(&cfg)
		_, err := Build(cfg)
		require.ErrorContains(t, err, tt.want)
	}
}

// acpica finds a program of Debian's acpica-tools.
func acpica(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		if os.Getenv("REQUIRE_IASL") == "1" {
			t.Fatalf("%s is missing: apt-get install acpica-tools", program)
		}
		t.Skipf("%s is missing: apt-get install acpica-tools", program)
	}
	return path
}

// The reference implementation disassembles each table without a complaint, and compiles what it got without one.
func TestDisassembly(t *testing.T) {
	iasl := acpica(t, "iasl")
	for _, cpus := range []int{1, 64} {
		cfg := testConfig(cpus)
		tables, err := Build(cfg)
		require.NoError(t, err)
		for signature, b := range walk(t, cfg.Base, tables) {
			t.Run(fmt.Sprintf("%s-%d", signature, cpus), func(t *testing.T) {
				dir := t.TempDir()
				file := filepath.Join(dir, "table.dat")
				require.NoError(t, os.WriteFile(file, b, 0o644))
				out, err := exec.Command(iasl, "-d", file).CombinedOutput()
				require.NoError(t, err, "%s", out)
				requireClean(t, string(out))
				source, err := os.ReadFile(filepath.Join(dir, "table.dsl"))
				require.NoError(t, err)
				requireClean(t, string(source))
				if signature != "DSDT" {
					return
				}
				out, err = exec.Command(iasl, "-vw", "2173", filepath.Join(dir, "table.dsl")).CombinedOutput()
				require.NoError(t, err, "%s\n%s", out, source)
				require.Contains(t, string(out), "0 Errors, 0 Warnings", "%s\n%s", out, source)
			})
		}
	}
}

func requireClean(t *testing.T, text string) {
	t.Helper()
	for _, bad := range []string{"warning", "error", "invalid", "unknown", "incorrect", "should be"} {
		require.NotContains(t, strings.ToLower(text), bad)
	}
}

// The reference interpreter runs the methods as a guest would.
func TestEvaluation(t *testing.T) {
	acpiexec := acpica(t, "acpiexec")
	cfg := testConfig(2)
	tables, err := Build(cfg)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "dsdt.dat")
	require.NoError(t, os.WriteFile(file, walk(t, cfg.Base, tables)["DSDT"], 0o644))
	const uuid = "(5B 4D DB 33 F7 1F 1C 40 96 57 74 41 C0 3D D7 66)"
	tests := []struct {
		command string
		want    []string
	}{
		{`evaluate \_S5`, []string{"[Package] Contains 4 Elements", "[Integer] = 0000000000000005"}},
		{`evaluate \_SB.PCI0._PRT`, []string{"[Package] Contains 128 Elements", "[Integer] = 0000000000000013"}},
		{`evaluate \_SB.C001._UID`, []string{"[Integer] = 0000000000000001"}},
		// Support for SHPC hot plug is asked for, and masked.
		{`evaluate \_SB.PCI0._OSC ` + uuid + ` 1 3 (00 00 00 00 00 00 00 00 1F 00 00 00)`, []string{"10 00 00 00 00 00 00 00 1D 00 00 00"}},
		{`evaluate \_SB.PCI0._OSC ` + uuid + ` 1 3 (00 00 00 00 00 00 00 00 1D 00 00 00)`, []string{"00 00 00 00 00 00 00 00 1D 00 00 00"}},
		{`evaluate \_SB.PCI0._OSC ` + uuid + ` 2 3 (00 00 00 00 00 00 00 00 1D 00 00 00)`, []string{"08 00 00 00 00 00 00 00 1D 00 00 00"}},
		{`evaluate \_SB.PCI0._OSC (` + strings.Repeat("00 ", 15) + `00) 1 3 (00 00 00 00 00 00 00 00 1D 00 00 00)`, []string{"04 00 00 00 00 00 00 00 1D 00 00 00"}},
	}
	for _, tt := range tests {
		t.Run(tt.command, func(t *testing.T) {
			out, err := exec.Command(acpiexec, "-b", tt.command, file).CombinedOutput()
			require.NoError(t, err, "%s", out)
			for _, want := range tt.want {
				require.Contains(t, string(out), want)
			}
			require.NotContains(t, string(out), "AE_", "an exception of the interpreter")
		})
	}
}
