// Package iouring is as much of Linux's io_uring(7) as a device needs: submitting reads and writes, and waiting for them,
// with one system call for both and without allocating memory.
package iouring

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Operations (Linux include/uapi/linux/io_uring.h).
const (
	opReadv  = 1
	opWritev = 2
	opRead   = 22
)

const (
	setupCQSize       = 1 << 3
	setupSubmitAll    = 1 << 7
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13

	featSingleMmap = 1 << 0
	featNoDrop     = 1 << 1

	enterGetEvents = 1 << 0

	registerFiles = 2
	sqeFixedFile  = 1 << 0

	offSQRing = 0
	offSQEs   = 0x1000_0000
)

type sqOffsets struct { // io_sqring_offsets
	head, tail, ringMask, ringEntries, flags, dropped, array, _ uint32
	_                                                           uint64
}

type cqOffsets struct { // io_cqring_offsets
	head, tail, ringMask, ringEntries, overflow, cqes, flags, _ uint32
	_                                                           uint64
}

type params struct { // io_uring_params
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32
	sq                                                                     sqOffsets
	cq                                                                     cqOffsets
}

type sqe struct { // io_uring_sqe
	opcode, flags uint8
	ioprio        uint16
	fd            int32
	off           uint64
	addr          uint64
	len           uint32
	opFlags       uint32
	userData      uint64
	_             [3]uint64
}

type cqe struct { // io_uring_cqe
	userData uint64
	res      int32
	flags    uint32
}

// Ring is an io_uring. It belongs to the thread that made it: lock the goroutine to its thread first.
type Ring struct {
	fd           int
	rings, sqMem []byte // mappings

	sqHead, sqTail *uint32
	sqes           []sqe
	tail           uint32 // of the entries that are filled
	submitted      uint32 // of those the kernel has

	cqHead, cqTail *uint32
	cqes           []cqe
}

// New makes a ring for so many submissions at a time, a power of two, and twice as many completions. It fails with
// ENOSYS or EPERM where the kernel or a container's policy does not allow io_uring, and wraps errors.ErrUnsupported
// where the kernel's is too old.
func New(entries uint32) (_ *Ring, err error) {
	p := params{flags: setupCQSize | setupSubmitAll | setupSingleIssuer | setupDeferTaskrun, cqEntries: 2 * entries}
	fd, err := setup(entries, &p)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.1
		p = params{flags: setupCQSize, cqEntries: 2 * entries}
		fd, err = setup(entries, &p)
	}
	if err != nil {
		return nil, fmt.Errorf("io_uring of %d entries: %w", entries, err)
	}
	r := &Ring{fd: fd}
	defer func() {
		if err != nil {
			_ = r.Close()
		}
	}()
	const needed = featSingleMmap | featNoDrop // Linux 5.5
	if p.features&needed != needed {
		return nil, fmt.Errorf("io_uring of this kernel: %w", errors.ErrUnsupported)
	}
	size := max(p.sq.array+4*p.sqEntries, p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(cqe{})))
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if r.rings, err = unix.Mmap(fd, offSQRing, int(size), prot, flags); err != nil {
		return nil, fmt.Errorf("map io_uring: %w", err)
	}
	if r.sqMem, err = unix.Mmap(fd, offSQEs, int(p.sqEntries)*int(unsafe.Sizeof(sqe{})), prot, flags); err != nil {
		return nil, fmt.Errorf("map io_uring's submissions: %w", err)
	}
	at := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[off])) }
	r.sqHead, r.sqTail = at(p.sq.head), at(p.sq.tail)
	r.cqHead, r.cqTail = at(p.cq.head), at(p.cq.tail)
	r.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&r.sqMem[0])), p.sqEntries)
	r.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&r.rings[p.cq.cqes])), p.cqEntries)
	for i := range p.sqEntries { // the array that names the entries stays as it is: each place its own
		*at(p.sq.array + 4*i) = i
	}
	return r, nil
}

func setup(entries uint32, p *params) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(p)), 0)
	if errno != 0 {
		return -1, errno
	}
	unix.CloseOnExec(int(fd))
	return int(fd), nil
}

// Close gives up the ring. Nothing may be in flight.
func (r *Ring) Close() error {
	var errs []error
	for _, m := range [][]byte{r.rings, r.sqMem} {
		if m != nil {
			errs = append(errs, unix.Munmap(m))
		}
	}
	r.rings, r.sqMem = nil, nil
	return errors.Join(append(errs, unix.Close(r.fd))...)
}

// RegisterFile makes fd known to the ring, once: [Ring.Readv] and [Ring.Writev] then go to it.
func (r *Ring) RegisterFile(fd int) error {
	fds := [1]int32{int32(fd)}
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerFiles, uintptr(unsafe.Pointer(&fds)), 1, 0, 0)
	if errno != 0 {
		return fmt.Errorf("register file %d with io_uring: %w", fd, errno)
	}
	return nil
}

// Readv queues a read of the registered file into iov, at off, and reports false where there is no room before the next
// [Ring.Enter]. Iov and what it points to must stay until the completion with this userData.
func (r *Ring) Readv(iov []unix.Iovec, off int64, userData uint64) bool {
	return r.vector(opReadv, iov, off, userData)
}

// Writev is the counterpart of Readv.
func (r *Ring) Writev(iov []unix.Iovec, off int64, userData uint64) bool {
	return r.vector(opWritev, iov, off, userData)
}

func (r *Ring) vector(op uint8, iov []unix.Iovec, off int64, userData uint64) bool {
	return r.push(sqe{
		opcode: op, flags: sqeFixedFile, off: uint64(off), userData: userData,
		addr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(iov)))), len: uint32(len(iov)),
	})
}

// ReadEvent queues a read of an eventfd into counter, as Readv does for the file.
func (r *Ring) ReadEvent(fd int, counter *uint64, userData uint64) bool {
	return r.push(sqe{
		opcode: opRead, fd: int32(fd), off: ^uint64(0), userData: userData,
		addr: uint64(uintptr(unsafe.Pointer(counter))), len: 8,
	})
}

func (r *Ring) push(e sqe) bool {
	if r.tail-atomic.LoadUint32(r.sqHead) == uint32(len(r.sqes)) {
		return false
	}
	r.sqes[r.tail%uint32(len(r.sqes))] = e
	r.tail++
	return true
}

// Queued is the number of entries that wait for Enter.
func (r *Ring) Queued() int { return int(r.tail - r.submitted) }

// Enter submits what is queued and waits until there are at least wait completions.
func (r *Ring) Enter(wait uint32) error {
	atomic.StoreUint32(r.sqTail, r.tail)
	for {
		n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(r.tail-r.submitted), uintptr(wait), enterGetEvents, 0, 0)
		switch errno {
		case 0:
			r.submitted += uint32(n)
			if r.submitted == r.tail {
				return nil
			}
		case unix.EINTR:
		case unix.EAGAIN, unix.EBUSY: // the kernel is short of something: first take what is complete
			if r.HasCompletions() {
				return nil
			}
		default:
			return fmt.Errorf("enter io_uring: %w", errno)
		}
	}
}

// HasCompletions tells whether there is something to complete.
func (r *Ring) HasCompletions() bool {
	return atomic.LoadUint32(r.cqHead) != atomic.LoadUint32(r.cqTail)
}

// Next takes the oldest completion: the userData of its submission, and what the system call would have returned, a
// negative errno for an error.
func (r *Ring) Next() (userData uint64, result int32, ok bool) {
	head := atomic.LoadUint32(r.cqHead)
	if head == atomic.LoadUint32(r.cqTail) {
		return 0, 0, false
	}
	c := r.cqes[head%uint32(len(r.cqes))]
	atomic.StoreUint32(r.cqHead, head+1)
	return c.userData, c.res, true
}
