package container

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

// line is one of a log: a piece of what a container has said, byte for byte.
type line struct {
	Log    []byte    `json:"log"`
	Stream string    `json:"stream"`
	Time   time.Time `json:"time"`
}

// maxLog bounds a log, in bytes: what comes later is not kept.
const maxLog = 256 << 20

// logWriter writes what a container says.
type logWriter struct {
	mu   sync.Mutex // guards what follows
	file *os.File
	size int64
}

func openLog(path string) (*logWriter, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &logWriter{file: f, size: st.Size()}, nil
}

func (l *logWriter) write(stream string, p []byte) {
	b, err := json.Marshal(line{Log: p, Stream: stream, Time: time.Now()})
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(len(b)) < maxLog {
		n, _ := l.file.Write(append(b, '\n')) // a full disk must not stop the container
		l.size += int64(n)
	}
}

func (l *logWriter) close() error { return l.file.Close() }

// Logs writes what the container has said to the two streams, and with follow what it says from now on, until it ends.
func (c *Container) Logs(ctx context.Context, stdout, stderr io.Writer, follow bool) error {
	f, err := os.Open(c.path("log"))
	if errors.Is(err, os.ErrNotExist) && !follow {
		return nil
	}
	for errors.Is(err, os.ErrNotExist) && c.alive() && pause(ctx) {
		f, err = os.Open(c.path("log"))
	}
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReader(f)
	var rest []byte // of a line that is being written
	for {
		alive := follow && c.alive() // before the read that finds nothing
		b, err := r.ReadBytes('\n')
		rest = append(rest, b...)
		if errors.Is(err, io.EOF) {
			if !alive {
				return nil
			}
			if !pause(ctx) {
				return nil
			}
			continue
		}
		if err != nil {
			return err
		}
		var l line
		if json.Unmarshal(rest, &l) == nil {
			w := stdout
			if l.Stream == "stderr" {
				w = stderr
			}
			if _, err := w.Write(l.Log); err != nil {
				return err
			}
		}
		rest = rest[:0]
	}
}

// pause is between two looks at a log that grows. It is false when ctx has ended.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(50 * time.Millisecond):
		return true
	}
}
