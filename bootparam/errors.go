package bootparam

import "errors"

// Input names what the user gave.
type Input string

// Inputs.
const (
	InputKernel  Input = "kernel"
	InputInitrd  Input = "initrd"
	InputCmdline Input = "command line"
)

// Error reports that an input cannot be booted, and why. Err wraps one of the errors below or that of a read.
type Error struct {
	Input Input
	Err   error
}

func (e *Error) Error() string { return string(e.Input) + ": " + e.Err.Error() }

// Unwrap returns what is wrong with the input.
func (e *Error) Unwrap() error { return e.Err }

// What can be wrong with an input. The error that wraps one of these says more.
var (
	ErrEmpty          = errors.New("empty file")
	ErrNotKernel      = errors.New("not a kernel")
	ErrCompressed     = errors.New("compressed")
	ErrArch           = errors.New("for another architecture")
	ErrOldProtocol    = errors.New("boot protocol too old")
	ErrTruncated      = errors.New("truncated")
	ErrCorrupt        = errors.New("corrupt")
	ErrNoRoom         = errors.New("not enough guest memory") // for the kernel
	ErrInitrdTooLarge = errors.New("too large")
	ErrCmdlineTooLong = errors.New("too long")
	ErrCmdlineNUL     = errors.New("contains a NUL byte")
)
