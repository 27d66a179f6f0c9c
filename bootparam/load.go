package bootparam

import (
	"fmt"
	"strings"

	"vmm/memory"
)

// Load puts the kernel, the initrd and the boot parameters into mem, whose RAM need not be zero before. The error is an
// [*Error] if an input of the user's is to blame; what mem holds is undefined then.
func Load(mem *memory.Memory, cfg Config) (Entry, error) {
	if err := checkE820(cfg.E820); err != nil {
		return Entry{}, err
	}
	ram := findRAM(mem, cfg.E820)
	if low := (span{lowStart, lowEnd}); !ram.contains(low) {
		return Entry{}, fmt.Errorf("%w: %v must be RAM for the boot parameters", ErrNoRoom, low)
	}
	ram = ram.without(span{0, lowEnd})

	k, err := findKernel(cfg.Kernel, ram)
	if err != nil {
		return Entry{}, &Error{InputKernel, err}
	}
	if err := checkCmdline(cfg.Cmdline, k.cmdlineSize); err != nil {
		return Entry{}, &Error{InputCmdline, err}
	}
	var initrd span
	if cfg.Initrd != nil {
		if initrd, err = k.placeInitrd(cfg.Initrd.Size(), ram); err != nil {
			return Entry{}, &Error{InputInitrd, err}
		}
	}

	for _, s := range k.segments {
		if err := s.load(mem, cfg.Kernel); err != nil {
			return Entry{}, &Error{InputKernel, err}
		}
	}
	if cfg.Initrd != nil {
		s := segment{span: initrd, size: initrd.size()}
		if err := s.load(mem, cfg.Initrd); err != nil {
			return Entry{}, &Error{InputInitrd, err}
		}
	}
	return k.writeParameters(mem, initrd, cfg)
}

func checkCmdline(cmdline string, limit uint64) error {
	if limit = min(limit, maxCmdline); uint64(len(cmdline)) > limit {
		return fmt.Errorf("%w: %d bytes, of which this kernel takes %d", ErrCmdlineTooLong, len(cmdline), limit)
	}
	if i := strings.IndexByte(cmdline, 0); i >= 0 {
		return fmt.Errorf("%w at %d", ErrCmdlineNUL, i)
	}
	return nil
}

// placeInitrd finds memory for an initrd of size bytes: as high as it may be, since a kernel that is decompressed or
// relocated wants its room low down.
func (k *kernel) placeInitrd(size int64, ram spans) (span, error) {
	if size <= 0 {
		return span{}, ErrEmpty
	}
	free := ram.without(span{0, highStart})
	for _, s := range k.segments {
		free = free.without(s.span)
	}
	var most uint64
	for _, limit := range k.initrdLimits {
		allowed := free.below(limit)
		if s, ok := allowed.highest(uint64(size), pageSize); ok {
			return s, nil
		}
		most = allowed.largest()
	}
	return span{}, fmt.Errorf("%w: it has %d bytes, and the kernel leaves %d of the guest's memory for it", ErrInitrdTooLarge, size, most)
}

// load reads the segment straight into guest memory.
func (s segment) load(mem *memory.Memory, img Image) error {
	p, err := mem.Slice(s.start, s.size+s.zero)
	if err != nil {
		return err
	}
	clear(p[s.size:])
	return readAt(img, p[:s.size], s.off)
}

// writeParameters writes all that layout.go names, and returns how to enter the kernel.
func (k *kernel) writeParameters(mem *memory.Memory, initrd span, cfg Config) (Entry, error) {
	low, err := mem.Slice(lowStart, uint64(lowEnd-lowStart))
	if err != nil {
		return Entry{}, err
	}
	// Only what the protocol needs is touched: an untouched page costs the host nothing.
	zeroed := func(addr memory.GPA, size uint64) []byte {
		p := low[addr-lowStart:][:size]
		clear(p)
		return p
	}

	e := Entry{Protocol: k.protocol, RIP: uint64(k.entry), GDT: gdtAddr, GDTLimit: gdtSize - 1}
	e.setSegments()
	e.writeGDT(zeroed(gdtAddr, gdtSize))
	copy(zeroed(cmdlineAddr, uint64(len(cfg.Cmdline))+1), cfg.Cmdline)
	if k.protocol == PVH {
		fillStartInfo(zeroed(startInfoAddr, pageSize), initrd, cfg)
		e.RBX = uint64(startInfoAddr)
		return e, nil
	}
	fillZeroPage(zeroed(zeroPageAddr, pageSize), &k.header, k.segments[0].start, initrd, cfg)
	e.RSI = uint64(zeroPageAddr)
	if k.protocol == Linux64 {
		writePageTables(zeroed(pml4Addr, pageSize), zeroed(pdptAddr, pageSize), zeroed(pdAddr, uint64(pageTablesEnd-pdAddr)))
		e.CR3 = uint64(pml4Addr)
	}
	return e, nil
}
