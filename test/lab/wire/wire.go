// Package wire is what the lab's two ends say to each other over a byte stream: frames, each of one session.
//
//	offset  size  field
//	0       1     kind
//	1       4     session, little endian
//	5       4     length of the payload, little endian
//	9             payload
//
// The agent opens with [Hello]. A session is one command: the host sends [Exec], then [Stdin] as it comes; the agent sends
// [Stdout] and [Stderr], and at last [Exit]. The host sends the next [Stdin] of a session only after the [Ack] of the one
// before, so that a command which does not read holds up nobody else.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// Kind tells what a frame's payload is.
type Kind byte

// The kinds of frames.
const (
	Hello  Kind = 1 + iota // agent: the kernel's release
	Exec                   // host: a Request, as JSON
	Stdin                  // host: bytes; none at the end of input
	Ack                    // agent: the bytes of the last Stdin are taken
	Stdout                 // agent: bytes
	Stderr                 // agent: bytes
	Resize                 // host: a Size, as JSON
	Signal                 // host: one byte, the signal for the command's process group
	Exit                   // agent: a Result, as JSON
	Beat                   // host: nothing; the agent ignores it
)

// MaxPayload bounds a frame's payload.
const MaxPayload = 64 << 10

const headerSize = 9

// Frame is one message.
type Frame struct {
	Kind    Kind
	Session uint32
	Payload []byte
}

// Request is a command to run.
type Request struct {
	Args []string
	Dir  string
	Env  []string // in addition to the agent's own
	TTY  *Size    // if set, the command runs on a terminal of this size, and all its output is Stdout
}

// Size is that of a terminal.
type Size struct{ Rows, Cols uint16 }

// Result is how a command ended.
type Result struct {
	Status int    // the exit status; 128 and the signal's number for one that a signal ended
	Error  string // why it could not be started, or empty
}

// Conn carries frames. Any number may call Write at once, one Read.
type Conn struct {
	r io.Reader

	mu sync.Mutex // guards w
	w  io.Writer
}

// NewConn makes a Conn of a stream.
func NewConn(rw io.ReadWriter) *Conn { return &Conn{r: rw, w: rw} }

// Write sends one frame.
func (c *Conn) Write(kind Kind, session uint32, payload []byte) error {
	if len(payload) > MaxPayload {
		return fmt.Errorf("frame of %d bytes, more than %d", len(payload), MaxPayload)
	}
	b := make([]byte, headerSize, headerSize+len(payload))
	b[0] = byte(kind)
	binary.LittleEndian.PutUint32(b[1:], session)
	binary.LittleEndian.PutUint32(b[5:], uint32(len(payload)))
	b = append(b, payload...)
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.w.Write(b)
	return err
}

// WriteJSON sends a frame whose payload is v.
func (c *Conn) WriteJSON(kind Kind, session uint32, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.Write(kind, session, b)
}

// Read receives one frame; io.EOF says that the other end has closed between two.
func (c *Conn) Read() (Frame, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(c.r, header[:]); err != nil {
		return Frame{}, err
	}
	f := Frame{Kind: Kind(header[0]), Session: binary.LittleEndian.Uint32(header[1:])}
	n := binary.LittleEndian.Uint32(header[5:])
	if n > MaxPayload {
		return Frame{}, fmt.Errorf("frame of %d bytes, more than %d", n, MaxPayload)
	}
	f.Payload = make([]byte, n)
	if _, err := io.ReadFull(c.r, f.Payload); err != nil {
		return Frame{}, fmt.Errorf("frame of %d bytes cut off: %w", n, err)
	}
	return f, nil
}

// Output returns a writer whose bytes go out as frames of the kind.
func (c *Conn) Output(kind Kind, session uint32) io.Writer { return output{c, kind, session} }

type output struct {
	c       *Conn
	kind    Kind
	session uint32
}

func (o output) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n := min(len(p)-done, MaxPayload)
		if err := o.c.Write(o.kind, o.session, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}
