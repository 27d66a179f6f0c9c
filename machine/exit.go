package machine

import (
	"fmt"
)

// Reason says why a machine stopped.
type Reason int

// The reasons of an [Exit].
const (
	PowerOff  Reason = iota + 1 // the guest powered itself off
	Reset                       // the guest reset itself
	DebugExit                   // the guest wrote to the debug-exit port
	Stopped                     // the context of Run ended
)

func (r Reason) String() string {
	switch r {
	case PowerOff:
		return "power off"
	case Reset:
		return "reset"
	case DebugExit:
		return "debug exit"
	case Stopped:
		return "stopped"
	}
	return fmt.Sprintf("reason %d", int(r))
}

// Exit says how a machine ended, where nothing went wrong.
type Exit struct {
	Reason Reason
	Source string // what the guest used, for PowerOff and Reset: "ACPI S5", "triple fault", "keyboard controller", ...
	Code   uint32 // what the guest wrote, for DebugExit
}
