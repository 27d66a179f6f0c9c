package qcow2

import (
	"errors"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/internal/iovec"
)

// ErrBeyondEnd is the error of a write behind the disk's end.
var ErrBeyondEnd = errors.New("behind the end of the disk")

// ReadAt implements io.ReaderAt.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	iov := [1]unix.Iovec{{Base: unsafe.SliceData(p), Len: uint64(len(p))}}
	return m.ReadVector(iov[:], off)
}

// WriteAt implements io.WriterAt.
func (m *Image) WriteAt(p []byte, off int64) (int, error) {
	iov := [1]unix.Iovec{{Base: unsafe.SliceData(p), Len: uint64(len(p))}}
	return m.WriteVector(iov[:], off)
}

// ReadVector reads into the buffers of iov, one after the other, from off on. It changes iov.
func (m *Image) ReadVector(iov []unix.Iovec, off int64) (int, error) {
	m.users.RLock()
	defer m.users.RUnlock()
	return m.read(iov, off)
}

// read is ReadVector; users is held.
func (m *Image) read(iov []unix.Iovec, off int64) (done int, err error) {
	want := iovec.Len(iov)
	if off < 0 {
		return 0, unix.EINVAL
	}
	n := max(min(want, m.Size()-off), 0)
	for int64(done) < n {
		at, err := m.lookup(off+int64(done), n-int64(done))
		if err != nil {
			return done, err
		}
		head, rest := iovec.Split(iov, at.n)
		if err := m.readMapped(head, off+int64(done), at); err != nil {
			return done, err
		}
		iov = rest.Of(iov)
		done += int(at.n)
	}
	if n < want {
		return done, io.EOF
	}
	return done, nil
}

// readMapped reads the piece of the disk from off on, which is at at, into iov, which is as long.
func (m *Image) readMapped(iov []unix.Iovec, off int64, at mapping) error {
	switch at.kind {
	case data:
		end := m.end.Load()
		if at.off+at.n > end {
			// An image whose file was cut short, or whose last cluster is not all there.
			n := max(end-at.off, 0)
			head, rest := iovec.Split(iov, n)
			if n > 0 {
				if err := readVector(m.file, m.vec, head, at.off); err != nil {
					return err
				}
			}
			iovec.Zero(rest.Of(iov))
			return nil
		}
		return readVector(m.file, m.vec, iov, at.off)
	case compressed:
		inside := off & (m.clusterSize - 1)
		for i := range iov {
			p := unsafe.Slice(iov[i].Base, iov[i].Len)
			if err := m.readCompressed(p, at.entry, inside); err != nil {
				return err
			}
			inside += int64(len(p))
		}
		return nil
	case absent:
		if m.backing != nil {
			if n := min(m.backing.Size()-off, at.n); n > 0 {
				vec, _ := m.backing.(vectors)
				head, rest := iovec.Split(iov, n)
				if err := readVector(m.backing, vec, head, off); err != nil {
					return err
				}
				iovec.Zero(rest.Of(iov))
				return nil
			}
		}
	}
	iovec.Zero(iov)
	return nil
}

// readVector fills iov from off on; vec is r's vector form, or nil.
func readVector(r io.ReaderAt, vec vectors, iov []unix.Iovec, off int64) error {
	if vec != nil {
		want := iovec.Len(iov)
		n, err := vec.ReadVector(iov, off)
		if int64(n) == want {
			return nil
		}
		return orShort(err)
	}
	for i := range iov {
		p := unsafe.Slice(iov[i].Base, iov[i].Len)
		if n, err := r.ReadAt(p, off); n < len(p) {
			return orShort(err)
		}
		off += int64(len(p))
	}
	return nil
}

func (m *Image) writeVector(iov []unix.Iovec, off int64) error {
	if m.vec != nil {
		want := iovec.Len(iov)
		n, err := m.vec.WriteVector(iov, off)
		if err == nil && int64(n) < want {
			err = io.ErrShortWrite
		}
		return err
	}
	for i := range iov {
		p := unsafe.Slice(iov[i].Base, iov[i].Len)
		if err := m.writeFull(p, off); err != nil {
			return err
		}
		off += int64(len(p))
	}
	return nil
}

// MappedFile is the descriptor of the image's file, and what memory must be aligned to for it, if the file has one.
func (m *Image) MappedFile() (fd, align int, ok bool) {
	if f, is := m.file.(interface{ Direct() (fd, align int) }); is {
		fd, align = f.Direct()
		return fd, align, true
	}
	return 0, 0, false
}

// Map returns where in the file the disk's n bytes from off on are, if they are there in one piece as the guest has them, and
// can be written there if that is wanted. They stay there until Unmap: what could move them, or give their clusters to
// another use, waits for it. So whoever has mapped something must not wait for anything of the image's before it calls Unmap,
// once for each Map that was ok. Map itself waits for nothing, and is not ok where it would have to.
func (m *Image) Map(off, n int64, write bool) (at int64, ok bool) {
	if !m.users.TryRLock() {
		return 0, false
	}
	if at, ok = m.place(off, n, write); !ok {
		m.users.RUnlock()
	}
	return at, ok
}

// Unmap ends a Map.
func (m *Image) Unmap() { m.users.RUnlock() }

// place is Map; users is held.
func (m *Image) place(off, n int64, write bool) (at int64, ok bool) {
	if off < 0 || n <= 0 || n > m.Size()-off || write && m.writable() != nil {
		return 0, false
	}
	if m.l2[uint64(off)>>m.clusterBits>>m.l2Bits].Load() == nil {
		return 0, false // its table has to be read first
	}
	found, err := m.lookup(off, n)
	if err != nil || found.kind != data || found.n < n || found.off+n > m.end.Load() {
		return 0, false
	}
	return found.off, !write || found.inPlace && m.ownsData(found)
}

// ownsData tells whether what a mapping says is data in place can be that: no table is there.
func (m *Image) ownsData(at mapping) bool {
	first := at.off &^ (m.clusterSize - 1)
	return first != 0 && at.off+at.n <= m.end.Load() && !m.hasMeta(first, m.clusters(at.off+at.n-first))
}

// WriteVector writes the buffers of iov, one after the other, to off. It changes iov.
func (m *Image) WriteVector(iov []unix.Iovec, off int64) (done int, err error) {
	n := iovec.Len(iov)
	switch err := m.writable(); {
	case err != nil:
		return 0, err
	case off < 0:
		return 0, unix.EINVAL
	case n > m.Size()-off:
		return 0, ErrBeyondEnd
	}
	m.users.RLock()
	defer m.users.RUnlock()
	for int64(done) < n {
		w, err := m.writePiece(iov, off+int64(done), n-int64(done))
		if err != nil {
			return done, err
		}
		if w.n == 0 {
			continue // another write was in the way
		}
		iov = w.rest.Of(iov)
		done += int(w.n)
	}
	return done, nil
}

// written is how far a write has come; if n is 0, it was in another's way and has to look again.
type written struct {
	n    int64
	rest iovec.Rest
}

// writePiece writes some of the bytes of iov, to off on; users is held.
func (m *Image) writePiece(iov []unix.Iovec, off, n int64) (written, error) {
	at, err := m.lookup(off, n)
	if err != nil {
		return written{}, err
	}
	if at.kind == data && at.inPlace {
		if !m.ownsData(at) {
			return written{}, m.corrupt("cluster %#x, which the disk's at %#x is in, is not one of the disk's", at.off&^(m.clusterSize-1), off)
		}
		head, rest := iovec.Split(iov, at.n)
		return written{at.n, rest}, m.writeVector(head, at.off)
	}
	f, err := m.begin(uint64(off)>>m.clusterBits, off, n)
	if err != nil || f == nil {
		return written{}, err // of somebody else's write, which is over now: again
	}
	piece := min(n, f.end(m.clusterBits)-off)
	head, rest := iovec.Split(iov, piece)
	if err := m.fill(f, head, off, piece); err != nil {
		m.abandon(f)
		return written{}, err
	}
	return written{piece, rest}, m.commit(f)
}

// fresh is a run of the disk's clusters to which a write gives room: n clusters of the file, from off on. It is pending from
// begin until commit or abandon.
type fresh struct {
	first  uint64 // cluster of the disk
	n      int64
	off    int64
	zeroed bool // the clusters of the file read as zeroes
	kept   bool // they are the disk's already, and read as zeroes by their L2 entries only
	done   chan struct{}
}

// end is the offset in the disk behind the clusters.
func (f *fresh) end(clusterBits uint) int64 { return int64(f.first+uint64(f.n)) << clusterBits }

// begin gives room to the cluster of the disk, and to those behind it that a write from off on, n bytes long, covers. It
// returns nil after it has waited for another write to one of them.
func (m *Image) begin(cluster uint64, off, n int64) (*fresh, error) {
	m.mu.Lock()
	if other := m.pending[cluster]; other != nil {
		m.mu.Unlock()
		<-other.done
		return nil, nil
	}
	defer m.mu.Unlock()
	t, err := m.ownL2(int(cluster >> m.l2Bits))
	if err != nil {
		return nil, err
	}
	perTable := uint64(1) << m.l2Bits
	last := uint64(off+n-1) >> m.clusterBits
	last = min(last, cluster|(perTable-1))
	f := &fresh{first: cluster, done: make(chan struct{})}
	for c := cluster; c <= last; c++ {
		entry := t.entry(c & (perTable - 1))
		k, at, err := m.classify(entry)
		if err != nil {
			return nil, err
		}
		mine := k == zeroes && at != 0 && entry&flagCopied != 0
		if c == cluster {
			if k == data && entry&flagCopied != 0 {
				return nil, nil // another write was faster
			}
			f.kept, f.off = mine, at
		}
		if k == data && entry&flagCopied != 0 || m.pending[c] != nil || mine != f.kept || mine && at != f.off+f.n<<m.clusterBits {
			break
		}
		f.n++
	}
	if f.kept {
		if m.hasMeta(f.off, f.n) || f.off+f.n<<m.clusterBits > m.end.Load() {
			return nil, m.corrupt("cluster %#x is not one of the disk's", f.off)
		}
	} else if f.off, f.n, f.zeroed, err = m.allocate(f.n); err != nil {
		return nil, err
	}
	for i := range uint64(f.n) {
		m.pending[f.first+i] = f
	}
	return f, nil
}

// fill writes iov, which is what comes to off on, to the new clusters, and around it what the disk has there now.
func (m *Image) fill(f *fresh, iov []unix.Iovec, off, n int64) error {
	start := int64(f.first) << m.clusterBits
	if err := m.copyOld(f, start, off); err != nil {
		return err
	}
	if err := m.copyOld(f, off+n, f.end(m.clusterBits)); err != nil {
		return err
	}
	return m.writeVector(iov, f.off+off-start)
}

// copyOld copies the disk's bytes [from, to), which are in one cluster, to the new ones.
func (m *Image) copyOld(f *fresh, from, to int64) error {
	if from == to {
		return nil
	}
	at, err := m.lookup(from, to-from)
	if err != nil {
		return err
	}
	blank := at.kind == zeroes || at.kind == absent && (m.backing == nil || from >= m.backing.Size())
	if blank && f.zeroed {
		return nil
	}
	buffer := m.buffers.Get().(*[]byte)
	defer m.buffers.Put(buffer)
	p := (*buffer)[:to-from]
	iov := [1]unix.Iovec{{Base: unsafe.SliceData(p), Len: uint64(len(p))}}
	if err := m.readMapped(iov[:], from, at); err != nil {
		return err
	}
	return m.writeFull(p, f.off+from-int64(f.first)<<m.clusterBits)
}

// commit makes the new clusters those of the disk.
func (m *Image) commit(f *fresh) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.finish(f)
	t, err := m.ownL2(int(f.first >> m.l2Bits))
	if err != nil {
		return err
	}
	for i := range uint64(f.n) {
		slot := (f.first + i) & (1<<m.l2Bits - 1)
		if !f.kept {
			m.drop(t.entry(slot))
		}
		t.setEntry(slot, uint64(f.off+int64(i)<<m.clusterBits)|flagCopied)
	}
	return nil
}

// abandon gives the new clusters back: nothing refers to them, here or on the disk.
func (m *Image) abandon(f *fresh) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.finish(f)
	if !f.kept {
		_ = m.unreference([]extent{{uint64(f.off) >> m.clusterBits, uint64(f.n)}}) // else they are lost, which is no more than room
	}
}

// finish lets those go on who wait for f; mu is held.
func (m *Image) finish(f *fresh) {
	for i := range uint64(f.n) {
		delete(m.pending, f.first+i)
	}
	close(f.done)
}

// Discard gives up the contents of [off, off+n): what was there is undefined afterwards, but never what somebody else has
// deleted. Only whole clusters are given up.
func (m *Image) Discard(off, n int64) error {
	if m.version < 3 && m.backing != nil {
		return m.checkRange(off, n) // the format has no way to say that the backing file does not count
	}
	first, last := m.whole(off, n)
	return m.unmap(off, n, first, last, func(entry uint64, k kind, _ int64) uint64 {
		switch {
		case k == absent:
			return entry
		case m.backing == nil:
			return 0
		}
		return flagZero
	})
}

// WriteZeroes makes [off, off+n) read as zeroes; it frees the clusters if mayUnmap.
func (m *Image) WriteZeroes(off, n int64, mayUnmap bool) error {
	if err := m.checkRange(off, n); err != nil {
		return err
	}
	first, last := m.whole(off, n)
	if m.version < 3 && (m.backing != nil || !mayUnmap) || first >= last {
		return m.writeBlank(off, n)
	}
	if err := m.writeBlank(off, int64(first)<<m.clusterBits-off); err != nil {
		return err
	}
	end := min(int64(last)<<m.clusterBits, m.Size())
	if err := m.writeBlank(end, off+n-end); err != nil {
		return err
	}
	return m.unmap(off, n, first, last, func(entry uint64, k kind, at int64) uint64 {
		switch {
		case k == absent && m.backing == nil:
			return entry
		case mayUnmap && m.backing == nil:
			return 0
		case !mayUnmap && at != 0 && entry&flagCopied != 0 && k != compressed:
			return entry | flagZero
		}
		return flagZero
	})
}

// whole returns the clusters, up to but without last, that lie wholly in [off, off+n). The disk's last one may be cut short.
func (m *Image) whole(off, n int64) (first, last uint64) {
	first = uint64(off+m.clusterSize-1) >> m.clusterBits
	last = uint64(off+n) >> m.clusterBits
	if off+n == m.Size() {
		last = uint64(m.clusters(off + n))
	}
	return first, last
}

func (m *Image) checkRange(off, n int64) error {
	switch err := m.writable(); {
	case err != nil:
		return err
	case off < 0 || n < 0:
		return unix.EINVAL
	case n > m.Size()-off:
		return ErrBeyondEnd
	}
	return nil
}

// writeBlank writes n zeroes, where there are none yet.
func (m *Image) writeBlank(off, n int64) error {
	buffer := m.buffers.Get().(*[]byte)
	defer m.buffers.Put(buffer)
	p := *buffer
	clear(p)
	for n > 0 {
		m.users.RLock()
		at, err := m.lookup(off, n)
		m.users.RUnlock()
		if err != nil {
			return err
		}
		if at.kind == zeroes || at.kind == absent && m.backing == nil {
			off, n = off+at.n, n-at.n
			continue
		}
		k, err := m.WriteAt(p[:min(n, int64(len(p)))], off)
		if err != nil {
			return err
		}
		off, n = off+int64(k), n-int64(k)
	}
	return nil
}

// unmap replaces the L2 entries of the clusters [first, last) by what change makes of them.
func (m *Image) unmap(off, n int64, first, last uint64, change func(entry uint64, k kind, at int64) uint64) error {
	if err := m.checkRange(off, n); err != nil {
		return err
	}
	for first < last {
		end := min(last, first|(1<<m.l2Bits-1)+1)
		waits, err := m.unmapTable(first, end, change)
		if err != nil {
			return err
		}
		if waits != nil {
			<-waits.done
			continue
		}
		first = end
	}
	m.mu.Lock()
	many := len(m.freed) > freedLimit
	m.mu.Unlock()
	if many {
		return m.Sync()
	}
	return nil
}

// unmapTable is unmap in one table. Where a write is pending, it returns that, having changed nothing.
func (m *Image) unmapTable(first, end uint64, change func(uint64, kind, int64) uint64) (*fresh, error) {
	m.users.RLock()
	defer m.users.RUnlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.pending) > 0 {
		for c := first; c < end; c++ {
			if f := m.pending[c]; f != nil {
				return f, nil
			}
		}
	}
	t, err := m.loadL2(int(first >> m.l2Bits))
	if err != nil {
		return nil, err
	}
	for c, owned := first, false; c < end; c++ {
		i := c & (1<<m.l2Bits - 1)
		old := t.entry(i)
		k, at, err := m.classify(old)
		if err != nil {
			return nil, err
		}
		value := change(old, k, at)
		if value == old {
			continue
		}
		if !owned {
			if t, err = m.ownL2(int(c >> m.l2Bits)); err != nil {
				return nil, err
			}
			owned = true
		}
		t.setEntry(i, value)
		if value&offsetMask == 0 {
			m.drop(old)
		}
	}
	return nil, nil
}

// BlockSizes implements blk.Blocked: a guest can write sectors, and writes clusters best.
func (m *Image) BlockSizes() (logical, physical int) {
	logical = 512
	if under, is := m.file.(interface{ BlockSizes() (int, int) }); is {
		logical, physical = under.BlockSizes()
	}
	return logical, max(physical, logical)
}
