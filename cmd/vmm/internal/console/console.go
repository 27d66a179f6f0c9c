// Package console holds what the guest's serial port can be connected to on the host: the standard streams (with escape
// keys where they are a terminal), a file, a pseudo-terminal, a Unix socket.
//
// All of them are io.ReadWriteClosers as machine.Config.Serial wants them: one goroutine reads while another one writes,
// and Close ends a pending Read or Write, which then fail with os.ErrClosed.
package console
