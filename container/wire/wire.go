// Package wire is what the two sides of a container's machine say to each other: vmm on the host, and the first process in the
// guest (package vmm/guest/init). They speak over vsock, in frames:
//
//	0  type (1)
//	1  length of the payload (4, little-endian), at most MaxPayload
//	5  payload: JSON, or bytes of a stream
//
// # Version 1
//
// The guest connects to port [Port] of its host as soon as it can, sends [Hello], gets [Setup], does what that says, and sends
// [Ready] or [Failed]. The connection stays open: its end means that the other side is gone.
//
// From then on the guest listens on its own port [Port]. Each connection is for one purpose, which its first frame says:
//
//	Start   a process: the answer is Started or Failed. Then come Stdout and Stderr from the guest and Signal and Resize from the
//	        host, and last Exited. A process whose connection ends before that is killed (SIGKILL), but for the main one.
//	Stdin   the input of the process that Start names by the same ID: bytes without frames, to the end of the connection. The guest
//	        starts the process when it has both.
//	Signal  one for the main process: the answer is Done or Failed.
//
// When the main process has ended, the guest kills all others, sends Exited, waits for the end of that connection, but not long,
// and powers off.
//
// A side that hears of a version that is not its own says so and ends the connection: there is no other that it could speak.
package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// Version is that of this package.
const Version = 1

// Port is where the host, and then the guest, listens.
const Port = 1024

// MaxPayload bounds a frame, in bytes.
const MaxPayload = 1 << 20

// Type says what a frame is.
type Type byte

// The types of frames.
const (
	TypeHello Type = iota + 1
	TypeSetup
	TypeReady
	TypeStart
	TypeStdin
	TypeStarted
	TypeStdout // bytes
	TypeStderr // bytes
	TypeResize
	TypeSignal
	TypeExited
	TypeDone
	TypeFailed
)

// Hello is the guest's first word.
type Hello struct {
	Version int `json:"version"`
}

// Setup says what the system is to be like in which processes run. The root file system is on the first disk.
type Setup struct {
	Hostname string            `json:"hostname"`
	ReadOnly bool              `json:"readOnly,omitempty"` // the root file system
	Tmpfs    map[string]string `json:"tmpfs,omitempty"`    // options by mount points
	Address  string            `json:"address,omitempty"`  // of the network card, with the length of its prefix; empty for none
	Gateway  string            `json:"gateway,omitempty"`
	DNS      []string          `json:"dns,omitempty"`
}

// Process is one that Start asks for.
type Process struct {
	Version int      `json:"version"`
	ID      uint64   `json:"id"`             // any that no other process has
	Main    bool     `json:"main,omitempty"` // the one whose end is the machine's
	Args    []string `json:"args"`
	Env     []string `json:"env,omitempty"`
	Dir     string   `json:"dir,omitempty"`
	User    string   `json:"user,omitempty"`  // user[:group], names or numbers; empty for root
	TTY     bool     `json:"tty,omitempty"`   // stdin, stdout and stderr are a terminal, and Stdout is what it shows
	Stdin   bool     `json:"stdin,omitempty"` // a connection for Stdin comes; else there is none
	Size    Resize   `json:"size,omitzero"`   // of the terminal
}

// Stdin says whose input a connection is.
type Stdin struct {
	ID uint64 `json:"id"`
}

// Resize is a terminal's size in characters.
type Resize struct {
	Rows    uint16 `json:"rows"`
	Columns uint16 `json:"columns"`
}

// Signal is one for a process, by its number.
type Signal struct {
	Number int `json:"number"`
}

// Exited is the end of a process, as a shell knows it: 128 and the number for the end by a signal.
type Exited struct {
	Status int `json:"status"`
}

// Failed says why something could not be done.
type Failed struct {
	Message string `json:"message"`
	Status  int    `json:"status,omitempty"` // of a process that could not be started: 126 if it may not be run, 127 if there is none
}

func (f *Failed) Error() string { return f.Message }

// Conn reads and writes frames. One goroutine may read and one write at a time.
type Conn struct {
	rw     io.ReadWriter
	header [5]byte
	buf    []byte
	out    bytes.Buffer
}

// NewConn speaks over rw.
func NewConn(rw io.ReadWriter) *Conn { return &Conn{rw: rw} }

// Send writes a frame with v as JSON; nil is an empty payload.
func (c *Conn) Send(t Type, v any) error {
	var payload []byte
	if v != nil {
		var err error
		if payload, err = json.Marshal(v); err != nil {
			return err
		}
	}
	return c.SendBytes(t, payload)
}

// SendBytes writes a frame.
func (c *Conn) SendBytes(t Type, payload []byte) error {
	if len(payload) > MaxPayload {
		return fmt.Errorf("a frame of %d bytes: at most %d", len(payload), MaxPayload)
	}
	c.out.Reset()
	c.out.WriteByte(byte(t))
	c.out.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(payload))))
	c.out.Write(payload)
	_, err := c.rw.Write(c.out.Bytes())
	return err
}

// Receive reads a frame, whose payload is valid until the next call. io.EOF is the end between two frames.
func (c *Conn) Receive() (Type, []byte, error) {
	if _, err := io.ReadFull(c.rw, c.header[:]); err != nil {
		return 0, nil, err
	}
	n := binary.LittleEndian.Uint32(c.header[1:])
	if n > MaxPayload {
		return 0, nil, fmt.Errorf("a frame of %d bytes: at most %d", n, MaxPayload)
	}
	if int(n) > cap(c.buf) {
		c.buf = make([]byte, n)
	}
	payload := c.buf[:n]
	if _, err := io.ReadFull(c.rw, payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return Type(c.header[0]), payload, nil
}

// Expect reads a frame of the type into v, which may be nil. Failed is returned as the error that it is.
func (c *Conn) Expect(t Type, v any) error {
	got, payload, err := c.Receive()
	switch {
	case err != nil:
		return err
	case got == TypeFailed:
		var f Failed
		if err := json.Unmarshal(payload, &f); err != nil {
			return err
		}
		return &f
	case got != t:
		return fmt.Errorf("a frame of type %d, not %d", got, t)
	case v == nil:
		return nil
	}
	return json.Unmarshal(payload, v)
}
