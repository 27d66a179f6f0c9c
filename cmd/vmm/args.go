package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

// parseFlags sets flags from args, which must all be flags; operandHint says, for the error, what the user may have meant by
// another one.
func parseFlags(flags *pflag.FlagSet, args []string, operandHint func(string) string) error {
	operands, err := parseArguments(flags, args)
	if err == nil && len(operands) > 0 {
		err = fmt.Errorf("%q: %s", operands[0], operandHint(operands[0]))
	}
	return err
}

// parseArguments sets flags from args, and returns the other arguments. A flag may have one dash or two, and its value may
// follow in the same argument, after =, or in the next one, where it may begin with a dash itself.
func parseArguments(flags *pflag.FlagSet, args []string) (operands []string, err error) {
	long, operands, err := normalise(flags, args)
	if err != nil {
		return nil, err
	}
	if err := flags.Parse(long); err != nil {
		var bad *pflag.InvalidValueError
		switch {
		case !errors.As(err, &bad):
		case bad.GetFlag().NoOptDefVal == "true": // a switch: the error is strconv's
			return nil, fmt.Errorf("-%s=%s: takes no value, or true or false", bad.GetFlag().Name, bad.GetValue())
		default:
			return nil, fmt.Errorf("-%s %s: %w", bad.GetFlag().Name, bad.GetValue(), bad.Unwrap())
		}
		return nil, err
	}
	return operands, nil
}

// normalise brings args into the form that pflag reads in one way only, --name=value, and takes out the arguments that
// are not flags: all after --, and those without a dash.
func normalise(flags *pflag.FlagSet, args []string) (long, operands []string, err error) {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return long, append(operands, args[i+1:]...), nil
		}
		if len(arg) < 2 || arg[0] != '-' {
			operands = append(operands, arg)
			continue
		}
		name, value, hasValue := strings.Cut(strings.TrimPrefix(arg[1:], "-"), "=")
		if name == "h" {
			name = "help"
		}
		flag := flags.Lookup(name)
		switch {
		case flag == nil:
			return nil, nil, unknownFlag(flags, arg, name)
		case !hasValue && flag.NoOptDefVal != "":
			value = flag.NoOptDefVal
		case !hasValue && i+1 == len(args):
			return nil, nil, fmt.Errorf("-%s: needs a value", name)
		case !hasValue:
			i++
			value = args[i]
		}
		long = append(long, "--"+name+"="+value)
	}
	return long, operands, nil
}

func unknownFlag(flags *pflag.FlagSet, arg, name string) error {
	if near := nearest(flags, name); near != "" {
		return fmt.Errorf("%s: no such flag (did you mean -%s?)", arg, near)
	}
	return fmt.Errorf(`%s: no such flag (see "vmm -help")`, arg)
}

// nearest returns the name of the flag that was probably meant, or nothing where none is near.
func nearest(flags *pflag.FlagSet, name string) string {
	best, bestDistance := "", 1+len(name)/3
	flags.VisitAll(func(f *pflag.Flag) {
		if d := distance(name, f.Name); d <= bestDistance && !f.Hidden && d < max(len(name), len(f.Name)) {
			best, bestDistance = f.Name, d-1
		}
	})
	return best
}

// distance is Levenshtein's: how many letters to insert, delete or replace.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
