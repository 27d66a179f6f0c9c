package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

func TestRunLines(t *testing.T) {
	for name, c := range map[string]struct {
		script, out string
		status      int
	}{
		"status of the last": {"echo a; false", "a\n", 1},
		"exit":               {"exit 3\necho not reached", "", 3},
		"across lines":       {"if true\nthen echo yes\nfi", "yes\n", 0},
		"a failure goes on":  {"no-such-program\necho after", "after\n", 0},
		"state is kept":      {"x=1\nf() { echo f$x; }\nf", "f1\n", 0},
		"the rest is a command's input": {
			"read line\nthis is read\necho \"$line\"", "this is read\n", 0,
		},
	} {
		t.Run(name, func(t *testing.T) {
			// One file is both the commands' source and the commands' input, as the terminal is.
			stdin := filepath.Join(t.TempDir(), "stdin")
			require.NoError(t, os.WriteFile(stdin, []byte(c.script+"\n"), 0o644))
			f, err := os.Open(stdin)
			require.NoError(t, err)
			defer f.Close()
			var stdout, stderr strings.Builder
			runner, err := interp.New(interp.StdIO(f, &stdout, &stderr))
			require.NoError(t, err)
			status, err := runLines(runner, syntax.NewParser(), byteReader{f})
			require.NoError(t, err)
			require.Equal(t, c.out, stdout.String())
			require.Equal(t, c.status, status)
		})
	}
}

func TestSyntaxError(t *testing.T) {
	runner, err := interp.New()
	require.NoError(t, err)
	_, err = runLines(runner, syntax.NewParser(), strings.NewReader("fi\n"))
	var parseError syntax.ParseError
	require.ErrorAs(t, err, &parseError)
}

func TestComplete(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"alpha", "alphabet", "beta"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o755))
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "gamma"), 0o755))
	t.Setenv("PATH", dir)
	t.Chdir(dir)
	for _, c := range []struct{ line, rest, want string }{
		{"be", "", "beta "},
		{"al", "", "alpha"}, // two agree so far
		{"x; be", "", "x; beta "},
		{"cat g", "", "cat gamma/"},
		{"cat < be", " | wc", "cat < beta  | wc"},
		{"cat " + dir + "/b", "", "cat " + dir + "/beta "},
		{"cat none", "", "cat none"},
	} {
		line, pos, ok := complete(c.line+c.rest, len(c.line), '\t')
		require.True(t, ok)
		require.Equal(t, c.want, line)
		require.Equal(t, len(c.want)-len(c.rest), pos)
	}
	_, _, ok := complete("be", 2, 'x')
	require.False(t, ok)
}
