package main

import (
	"errors"
	"io"
	"strings"

	"vmm/cmd/vmm/internal/console"
)

// serialTarget is the value of -serial and of -console.
type serialTarget struct {
	kind serialKind
	path string // of a file or a socket
}

type serialKind string

const (
	serialStdio serialKind = "stdio"
	serialFile  serialKind = "file"
	serialPTY   serialKind = "pty"
	serialUnix  serialKind = "unix"
	serialNone  serialKind = "none"
)

// Set reads a target in the form that String gives.
func (t *serialTarget) Set(s string) error {
	kind, path, hasPath := strings.Cut(s, ":")
	switch k := serialKind(kind); {
	case (k == serialFile || k == serialUnix) && path == "":
		return errors.New("needs a path (" + kind + ":PATH)")
	case (k == serialFile || k == serialUnix) || (k == serialStdio || k == serialPTY || k == serialNone) && !hasPath:
		*t = serialTarget{kind: k, path: path}
		return nil
	}
	return errors.New("not a serial target (use stdio, file:PATH, pty, unix:PATH or none)")
}

func (t *serialTarget) String() string {
	if t.path == "" {
		return string(t.kind)
	}
	return string(t.kind) + ":" + t.path
}

// Type is the value's name in pflag's terms.
func (t *serialTarget) Type() string { return "target" }

// serialPort is the host's end of the guest's serial port, or of its virtio console.
type serialPort struct {
	line     io.ReadWriteCloser // nil for none
	abandon  func() error       // closes a line that no machine took, and removes what its opening made
	terminal bool               // the line is the user's terminal
	notice   string             // what the user must know to use it
}

// portNames are what the flags' ports are called.
var portNames = map[string]string{"serial": "serial port", "console": "virtio console"}

// openLine opens the target that flag names. The session hears of the escape keys of a terminal, and of the first output.
func (p *process) openLine(flag string, t serialTarget, s *session) (port serialPort, err error) {
	switch t.kind {
	case serialStdio:
		cfg := console.StdioConfig{In: p.stdin, Out: p.stdout}
		if port.terminal = console.IsTerminal(p.stdin); port.terminal {
			cfg.OnKey = s.onKey(p)
		}
		line, err := console.NewStdio(cfg)
		if err != nil {
			return port, err
		}
		port.line, port.abandon = line, line.Close
	case serialFile:
		line, err := console.OpenFile(t.path)
		if err != nil {
			return port, mistakef("-%s %s: %w", flag, &t, err)
		}
		port.line, port.abandon = line, line.Abandon
	case serialPTY:
		line, err := console.OpenPTY()
		if err != nil {
			return port, mistakef("-%s %s: %w", flag, &t, err)
		}
		port.line, port.abandon = line, line.Close
		port.notice = portNames[flag] + " is " + line.Name()
	case serialUnix:
		line, err := console.ListenUnix(t.path)
		if err != nil {
			return port, mistakef("-%s %s: %w", flag, &t, err)
		}
		port.line, port.abandon = line, line.Close
	case serialNone:
		port.abandon = func() error { return nil }
		return port, nil
	}
	port.line = console.OnFirstWrite(port.line, s.heard)
	return port, nil
}
