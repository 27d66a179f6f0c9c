// Command attach connects its standard input and output to the other end of a serial port: a terminal, or a Unix socket.
//
//	attach PATH
package main

import (
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

func main() {
	line, err := open(os.Args[1])
	if err != nil {
		fmt.Fprintf(os.Stderr, "attach: %v\n", err)
		os.Exit(1)
	}
	go func() { _, _ = io.Copy(line, os.Stdin) }() // until the process ends
	// A terminal whose other end has gone reads as an I/O error, not as an end.
	_, _ = io.Copy(os.Stdout, line)
}

func open(path string) (io.ReadWriter, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode()&os.ModeSocket != 0 {
		return net.Dial("unix", path)
	}
	return os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
}
