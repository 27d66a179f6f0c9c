package main

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestREADMEShowsTheHelp(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	require.Contains(t, string(readme), "```text\n"+helpText()+"```\n", "copy the output of vmm -help into README.md")
}
