package machine_test

import (
	"context"
	"fmt"
	"log"

	"vmm/machine"
)

// A machine boots a kernel that writes a line to its serial port and powers off. A real program takes the kernel from a
// file, as io.NewSectionReader(file, 0, size).
func Example() {
	line := newTerminal() // an io.ReadWriteCloser
	m, err := machine.New(machine.Config{
		Kernel:  hello.image(),
		Cmdline: machine.DefaultCmdline,
		Memory:  64 << 20,
		CPUs:    2,
		Serial:  line,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	exit, err := m.Run(context.Background())
	fmt.Print(line)
	fmt.Println(exit.Reason, err)
	// Output:
	// hello, world
	// power off <nil>
}
