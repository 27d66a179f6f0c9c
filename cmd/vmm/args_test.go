package main

import (
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

func testFlags() *pflag.FlagSet {
	f := pflag.NewFlagSet("test", pflag.ContinueOnError)
	f.String("kernel", "", "")
	f.String("append", "", "")
	f.String("mem", "", "")
	f.Bool("debug", false, "")
	f.Bool("help", false, "")
	return f
}

func TestNormalise(t *testing.T) {
	for _, tt := range []struct {
		name           string
		args           []string
		long, operands []string
		err            string
	}{
		{name: "nothing"},
		{name: "one dash", args: []string{"-kernel", "K"}, long: []string{"--kernel=K"}},
		{name: "two dashes", args: []string{"--kernel", "K"}, long: []string{"--kernel=K"}},
		{name: "equals sign", args: []string{"-mem=1G", "--mem=2G"}, long: []string{"--mem=1G", "--mem=2G"}},
		{name: "value with an equals sign", args: []string{"-append", "a=b"}, long: []string{"--append=a=b"}},
		{name: "empty values", args: []string{"-append", "", "-append="}, long: []string{"--append=", "--append="}},
		{name: "value with a dash", args: []string{"-append", "-kernel", "-debug"}, long: []string{"--append=-kernel", "--debug=true"}},
		{name: "value of two dashes", args: []string{"-append", "--", "-debug"}, long: []string{"--append=--", "--debug=true"}},
		{name: "a switch takes no value", args: []string{"-debug", "false"}, long: []string{"--debug=true"}, operands: []string{"false"}},
		{name: "a switch with a value", args: []string{"-debug=false"}, long: []string{"--debug=false"}},
		{name: "short help", args: []string{"-h"}, long: []string{"--help=true"}},
		{name: "end of flags", args: []string{"-debug", "--", "-kernel", "x"}, long: []string{"--debug=true"}, operands: []string{"-kernel", "x"}},
		{name: "operands", args: []string{"a", "-debug", "-"}, long: []string{"--debug=true"}, operands: []string{"a", "-"}},
		{name: "no value", args: []string{"-debug", "-mem"}, err: "-mem: needs a value"},
		{name: "near", args: []string{"-kernal", "K"}, err: "-kernal: no such flag (did you mean -kernel?)"},
		{name: "near, with a value", args: []string{"--memm=1G"}, err: "--memm=1G: no such flag (did you mean -mem?)"},
		{name: "far", args: []string{"-m", "1G"}, err: `-m: no such flag (see "vmm -help")`},
		{name: "three dashes", args: []string{"---mem=1G"}, err: "---mem=1G: no such flag (did you mean -mem?)"},
		{name: "no name", args: []string{"-=1G"}, err: `-=1G: no such flag (see "vmm -help")`},
		{name: "joined short flags are not a thing", args: []string{"-dh"}, err: `-dh: no such flag (see "vmm -help")`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			long, operands, err := normalise(testFlags(), tt.args)
			if tt.err != "" {
				require.EqualError(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.long, long)
			require.Equal(t, tt.operands, operands)
		})
	}
}

// FuzzNormalise checks that pflag takes whatever normalise gives it, with each value as it was.
func FuzzNormalise(f *testing.F) {
	f.Add("-append", "-kernel", "--")
	f.Add("-mem=1G", "-debug=x", "-append=--")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		flags := testFlags()
		long, operands, err := normalise(flags, []string{a, b, c})
		if err != nil {
			return
		}
		require.LessOrEqual(t, len(long)+len(operands), 3)
		if err := flags.Parse(long); err != nil {
			require.ErrorAs(t, err, new(*pflag.InvalidValueError))
		}
		require.Empty(t, flags.Args())

		require.NoError(t, parseFlags(flags, []string{"-append", b}, nil))
		value, err := flags.GetString("append")
		require.NoError(t, err)
		require.Equal(t, b, value)
	})
}
