// Command runner measures monitors on the machine where it runs: a measure.Plan as JSON on its standard input, a
// measure.Report on its standard output.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"vmm/test/bench/measure"
)

func main() {
	// Not to end without its traces removed.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var plan measure.Plan
	if err := json.NewDecoder(os.Stdin).Decode(&plan); err != nil {
		return err
	}
	report, err := measure.Run(ctx, &plan, func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) })
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(report)
}
