package main

import (
	"encoding/json"

	"github.com/spf13/pflag"

	"vmm/machine/probe"
)

const probeHelp = `Usage: vmm probe [-json]

Tells what this host's KVM offers and lacks, with a remedy for each lack. The exit
status is 0 if virtual machines can run here and 1 if not.
`

// probe is the command of that name.
func (p *process) probe(args []string) (status int, err error) {
	flags := pflag.NewFlagSet("vmm probe", pflag.ContinueOnError)
	asJSON := flags.Bool("json", false, "")
	help := flags.Bool("help", false, "")
	hint := func(string) string { return "vmm probe takes no arguments" }
	if err := parseFlags(flags, args, hint); err != nil {
		return 0, mistake{err}
	}
	if *help {
		_, err := p.stdout.WriteString(probeHelp)
		return statusOK, err
	}
	report := probe.Host("/dev/kvm")
	if *asJSON {
		out := json.NewEncoder(p.stdout)
		out.SetIndent("", "  ")
		err = out.Encode(report)
	} else {
		err = report.WriteText(p.stdout)
	}
	if !report.OK() {
		status = statusFailed
	}
	return status, err
}
