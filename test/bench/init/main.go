// Command init is the guest's first process in a measurement: it says that it runs, and then does nothing, for ever.
package main

import (
	"syscall"

	"vmm/test/bench/measure/up"
)

func main() {
	if _, err := syscall.Write(1, []byte(up.Line+"\n")); err != nil {
		return // the kernel's panic says the rest
	}
	for {
		_ = syscall.Pause() // a signal may end it
	}
}
