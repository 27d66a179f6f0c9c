package acpi

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// acpica runs a program of ACPICA, the reference implementation, in a folder, and returns what it prints.
func acpica(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		const remedy = "%s is missing: apt-get install acpica-tools"
		if os.Getenv("REQUIRE_IASL") == "1" {
			t.Fatalf(remedy, program)
		}
		t.Skipf(remedy, program)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

// compile translates a source file in dir, without the optimizations that a reader of its output doesn't expect.
func compile(t *testing.T, dir, source string) []byte {
	t.Helper()
	out := acpica(t, dir, "iasl", "-on", source)
	require.Contains(t, out, "0 Errors, 0 Warnings, 0 Remarks")
	aml, err := os.ReadFile(filepath.Join(dir, strings.TrimSuffix(source, filepath.Ext(source))+".aml"))
	require.NoError(t, err)
	return aml
}

// requireSame compares two tables but for the compiler's name and version, and the checksum that they are in.
func requireSame(t *testing.T, want, got []byte) {
	t.Helper()
	anonymous := func(table []byte) []byte {
		table = bytes.Clone(table)
		table[9] = 0
		clear(table[28:36])
		return table
	}
	require.Equal(t, anonymous(want), anonymous(got))
}

// The reference compiler understands each table: it disassembles them without a complaint, and makes the same table again
// of what it understood.
func TestDisassembly(t *testing.T) {
	for name, cfg := range machines() {
		tables, err := Build(cfg)
		require.NoError(t, err)
		for signature, b := range walk(t, cfg.Base, tables) {
			if signature == "RSDP" { // it isn't a table
				continue
			}
			t.Run(name+"/"+signature, func(t *testing.T) {
				dir := t.TempDir()
				require.NoError(t, os.WriteFile(filepath.Join(dir, "table.dat"), b, 0o644))
				requireNoComplaint(t, acpica(t, dir, "iasl", "-d", "table.dat"))
				source, err := os.ReadFile(filepath.Join(dir, "table.dsl"))
				require.NoError(t, err)
				requireNoComplaint(t, string(source))
				again := compile(t, dir, "table.dsl")
				if signature == "FACS" { // it has no common header
					require.Equal(t, b, again)
				} else {
					requireSame(t, b, again)
				}
			})
		}
	}
}

func requireNoComplaint(t *testing.T, text string) {
	t.Helper()
	for _, word := range []string{"warning", "error", "invalid", "unknown", "incorrect", "should be"} {
		require.NotContains(t, strings.ToLower(text), word)
	}
}

// The DSDT says what its source in ASL says.
func TestDSDTSource(t *testing.T) {
	source, err := os.ReadFile("testdata/dsdt.asl")
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "dsdt.asl"), source, 0o644))
	cfg := testConfig(0, 1)
	tables, err := Build(cfg)
	require.NoError(t, err)
	requireSame(t, compile(t, dir, "dsdt.asl"), walk(t, cfg.Base, tables)["DSDT"])
}

// The reference interpreter loads the tables and evaluates objects and methods, as a guest does.
func TestEvaluation(t *testing.T) {
	cfg := testConfig(0, 1)
	tables, err := Build(cfg)
	require.NoError(t, err)
	dir := t.TempDir()
	files := []string{"DSDT", "FACP", "APIC", "MCFG"}
	for _, signature := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, signature), walk(t, cfg.Base, tables)[signature], 0o644))
	}

	const (
		hostBridge = "(5B 4D DB 33 F7 1F 1C 40 96 57 74 41 C0 3D D7 66)"
		other      = "(00 01 02 03 04 05 06 07 08 09 0A 0B 0C 0D 0E 0F)"
	)
	tests := []struct {
		name, command string
		want          []string
	}{
		{"soft off", `evaluate \_S5`, []string{"[Package] Contains 4 Elements", "[Integer] = 0000000000000005"}},
		{"interrupt routing", `evaluate \_SB.PCI0._PRT`, []string{"[Package] Contains 128 Elements", "[Integer] = 0000000000000013"}},
		{"processor", `evaluate \_SB.C001._UID`, []string{"[Integer] = 0000000000000001"}},
		{"windows", `resources \_SB.PCI0`, []string{
			"Address Maximum : 0000",
			"Address Minimum : 0CF8",
			"Address Maximum : FFFF",
			"Address Maximum : DFFFFFFF",
			"Address Maximum : 00000010FFFFFFFF",
		}},
		{"motherboard", `resources \_SB.MBRD`, []string{"Address : E0000000", "Address Minimum : 060C"}},
		{"serial port", `resources \_SB.COM1`, []string{"Address Minimum : 03F8", "Interrupt List : 4"}},

		// Of what Linux asks for, SHPC hot plug (bit 1) is masked: 0x1F gives 0x1D.
		{"_OSC, masked", `evaluate \_SB.PCI0._OSC ` + hostBridge + ` 1 3 (00 00 00 00 00 00 00 00 1F 00 00 00)`,
			[]string{"10 00 00 00 00 00 00 00 1D 00 00 00"}},
		{"_OSC, granted", `evaluate \_SB.PCI0._OSC ` + hostBridge + ` 1 3 (01 00 00 00 1E 00 00 00 1D 00 00 00)`,
			[]string{"01 00 00 00 1E 00 00 00 1D 00 00 00"}},
		{"_OSC, unknown revision", `evaluate \_SB.PCI0._OSC ` + hostBridge + ` 2 3 (00 00 00 00 00 00 00 00 1D 00 00 00)`,
			[]string{"08 00 00 00 00 00 00 00 1D 00 00 00"}},
		{"_OSC, unknown UUID", `evaluate \_SB.PCI0._OSC ` + other + ` 1 3 (00 00 00 00 00 00 00 00 1F 00 00 00)`,
			[]string{"04 00 00 00 00 00 00 00 1F 00 00 00"}},
	}
	commands := make([]string, len(tests))
	for i, tt := range tests {
		commands[i] = tt.command
	}
	// One run for all of them, because the program takes its time to start and to end.
	out := acpica(t, dir, "acpiexec", append([]string{"-b", strings.Join(commands, ";")}, files...)...)
	for _, bad := range []string{"ACPI Error", "ACPI Warning", "ACPI Exception", "ACPI BIOS", "Firmware"} {
		require.NotContains(t, out, bad)
	}
	for _, tt := range tests {
		for _, want := range tt.want {
			_, rest, found := strings.Cut(out, want)
			require.True(t, found, "%s: no %q in\n%s", tt.name, want, out)
			out = rest
		}
	}
}
