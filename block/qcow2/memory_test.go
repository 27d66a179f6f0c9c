package qcow2

import (
	"errors"
	"io"
	"math/rand/v2"
	"sync"
)

// memory is a Storage that remembers what was written since when, so that it can tell what a crash leaves of it.
type memory struct {
	mu     sync.Mutex
	data   []byte
	synced []byte   // at the last Sync
	since  []change // after it
	fail   int      // writes until one fails; 0 for never
}

type change struct {
	off      int64
	p        []byte
	truncate bool // to off
}

var errFull = errors.New("disk full")

func (f *memory) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memory) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail > 0 {
		if f.fail--; f.fail == 0 {
			return 0, errFull
		}
	}
	c := change{off: off, p: append([]byte{}, p...)}
	f.data = c.apply(f.data)
	if f.synced != nil {
		f.since = append(f.since, c)
	}
	return len(p), nil
}

func (c change) apply(data []byte) []byte {
	end := c.off + int64(len(c.p))
	if c.truncate && int64(len(data)) > end {
		return data[:end:end]
	}
	if int64(len(data)) < end {
		data = append(data, make([]byte, end-int64(len(data)))...)
	}
	copy(data[c.off:], c.p)
	return data
}

func (f *memory) Size() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int64(len(f.data))
}

func (f *memory) Truncate(size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := change{off: size, truncate: true}
	f.data = c.apply(f.data)
	if f.synced != nil {
		f.since = append(f.since, c)
	}
	return nil
}

func (f *memory) Sync() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.synced != nil {
		f.synced = append(f.synced[:0], f.data...)
		f.since = nil
	}
	return nil
}

// crash is what a power cut leaves: all that was synced, and of the rest what r pleases, sector by sector.
func (f *memory) crash(r *rand.Rand) *memory {
	f.mu.Lock()
	defer f.mu.Unlock()
	data := append([]byte{}, f.synced...)
	for _, c := range f.since {
		if c.truncate {
			if r.IntN(2) == 0 {
				data = c.apply(data)
			}
			continue
		}
		for at := 0; at < len(c.p); {
			n := min(512-int(c.off+int64(at))%512, len(c.p)-at)
			if r.IntN(2) == 0 {
				data = change{off: c.off + int64(at), p: c.p[at : at+n]}.apply(data)
			}
			at += n
		}
	}
	return &memory{data: data}
}
