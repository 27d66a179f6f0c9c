// Command reboot resets the machine at once.
package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func main() {
	// What earlier commands have printed waits in the terminal until the line has taken it, and would be lost there. An
	// output that is no terminal has nothing to wait for. The signals that interrupt are Go's own.
	for unix.IoctlSetInt(unix.Stdout, unix.TCSBRK, 1) == unix.EINTR { // tcdrain(3)
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		fmt.Fprintf(os.Stderr, "reboot: %v\n", err)
		os.Exit(1)
	}
}
