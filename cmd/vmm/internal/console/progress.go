package console

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Progress is one line on a terminal that says what goes on, for as long as there is nothing better to see there. Its
// methods may be called by any goroutine, and on a nil Progress, which shows nothing.
type Progress struct {
	out   io.Writer
	start time.Time
	ended chan struct{}
	done  sync.WaitGroup

	mu   sync.Mutex // guards what follows; held while the line is written, so that nothing is written after End
	text string
	over bool
}

// progressDelay is how long nothing is shown: most things are done by then, and a line that flashes tells nothing.
const progressDelay = 500 * time.Millisecond

// NewProgress returns a line on w, or nil if w is no terminal.
func NewProgress(w io.Writer) *Progress {
	if f, isFile := w.(*os.File); !isFile || !IsTerminal(f) {
		return nil
	}
	return newProgress(w)
}

func newProgress(w io.Writer) *Progress {
	p := &Progress{out: w, start: time.Now(), ended: make(chan struct{})}
	p.done.Go(p.run)
	return p
}

// Show replaces the line's text.
func (p *Progress) Show(text string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text = text
	if time.Since(p.start) >= progressDelay {
		p.draw()
	}
}

// End clears the line for good. It can be called again.
func (p *Progress) End() {
	if p == nil {
		return
	}
	p.mu.Lock()
	if !p.over {
		p.over = true
		if time.Since(p.start) >= progressDelay {
			_, _ = io.WriteString(p.out, "\r\x1b[K")
		}
		close(p.ended)
	}
	p.mu.Unlock()
	p.done.Wait()
}

// run draws the line again each second, for the time in it.
func (p *Progress) run() {
	next := time.NewTimer(progressDelay)
	defer next.Stop()
	for {
		select {
		case <-p.ended:
			return
		case <-next.C:
		}
		p.mu.Lock()
		p.draw()
		p.mu.Unlock()
		next.Reset(time.Second - time.Since(p.start)%time.Second)
	}
}

// draw writes the line; mu is held.
func (p *Progress) draw() {
	if p.text != "" && !p.over {
		fmt.Fprintf(p.out, "\r\x1b[K%s (%d s)", p.text, int(time.Since(p.start).Seconds()))
	}
}

// OnFirstWrite returns line with a Write that calls first before the first byte goes through.
func OnFirstWrite(line io.ReadWriteCloser, first func()) io.ReadWriteCloser {
	return &firstWrite{ReadWriteCloser: line, first: first}
}

type firstWrite struct {
	io.ReadWriteCloser
	once  sync.Once
	first func()
}

func (w *firstWrite) Write(p []byte) (int, error) {
	w.once.Do(w.first)
	return w.ReadWriteCloser.Write(p)
}
