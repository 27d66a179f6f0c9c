package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vmm/test/bench/measure"
)

func TestQuartiles(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   [5]float64
	}{
		{[]float64{3}, [5]float64{3, 3, 3, 3, 3}},
		{[]float64{2, 1}, [5]float64{1, 1.25, 1.5, 1.75, 2}},
		{[]float64{5, 1, 4, 2, 3}, [5]float64{1, 2, 3, 4, 5}},
	} {
		require.Equal(t, test.want, quartiles(test.values))
	}
}

func TestMarkdown(t *testing.T) {
	r := results{Machine: "a machine", Time: time.Unix(0, 0).UTC(), Starts: 3, Boots: 1, Lab: &measure.Report{
		Host: "6.1.0",
		Starts: []measure.Times{
			{Monitor: measure.VMM, Kernel: "k", Seconds: []float64{.010, .030, .020}},
			{Monitor: measure.MicroVM, Kernel: "k", Seconds: []float64{.080, .080, .080}},
		},
		Boots: []measure.Times{
			{Monitor: measure.VMM, Kernel: "k", Seconds: []float64{6}},
			{Monitor: measure.Q35, Kernel: "k", Seconds: []float64{10}},
			{Monitor: measure.MicroVM, Kernel: "k", Seconds: []float64{15}},
		},
		Exits: []measure.Exits{
			{Monitor: measure.VMM, Kernel: "k", Quiet: true, Total: 50, Reasons: map[string]int{"IO": 50}, Places: map[string]int{"port 0x3f8": 50}},
			{Monitor: measure.Q35, Kernel: "k", Quiet: true, Total: 100, Reasons: map[string]int{"IO": 90, "MMIO": 10}, Places: map[string]int{"port 0x3f8": 90, "page 0x1000": 10}},
		},
		Sizes: []measure.Size{{Monitor: measure.VMM, Kernel: "k", Processes: 2, RSS: 8 << 20, PSS: 5 << 20, Guest: 64 << 20}},
	}}
	text := r.markdown()
	for _, line := range []string{
		"### In the nested lab (Linux 6.1.0)",
		"| k | vmm | 20 | 15 – 25 | 10 – 30 |  |  |",
		"| k | QEMU microvm | 80 | 80 – 80 | 80 – 80 | 0.25 | met |",
		"| k | QEMU q35 | 10 | 10 – 10 | 10 – 10 | 0.60 | missed |",
		"| k | QEMU microvm | 15 | 15 – 15 | 15 – 15 | 0.40 |  |",
		"| k | quiet | QEMU q35 | 100 | 90 | 10 | 0.50 | met |",
		"| port 0x3f8 | 50 | 90 |",
		"| page 0x1000 | 0 | 10 |",
		"| k | vmm | 2 | 8.0 | 5.0 | 64.0 | met |",
	} {
		require.Contains(t, text, line+"\n")
	}
}

func TestRewrite(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.md")
	require.NoError(t, os.WriteFile(page, []byte("before\n"+pageBegin+"old\n"+pageEnd+"after\n"), 0o644))
	require.NoError(t, rewrite(page, "new\n"))
	got, err := os.ReadFile(page)
	require.NoError(t, err)
	require.Equal(t, "before\n"+pageBegin+"\nnew\n\n"+pageEnd+"after\n", string(got))

	require.NoError(t, os.WriteFile(page, []byte("nothing"), 0o644))
	require.ErrorContains(t, rewrite(page, "new\n"), "the lines around the results are missing")
}
