package bootparam

import (
	"debug/elf"
	"encoding/binary"
	"fmt"

	"vmm/memory"
)

const (
	noteHeaderSize = 12
	// maxNotesSize is far above what a kernel has (Linux: 500 bytes), so that a corrupt size costs nothing.
	maxNotesSize = 64 << 10

	noteNameXen   = "Xen\x00"
	notePhys32    = 18 // XEN_ELFNOTE_PHYS32_ENTRY, Xen xen/include/public/elfnote.h
	noteAlignment = 4
)

// addNotes makes k a PVH kernel if there is such a note in the segment.
func (k *kernel) addNotes(img Image, ph elf.Prog64) error {
	if ph.Filesz > maxNotesSize {
		return fmt.Errorf("%w: %d bytes of notes", ErrCorrupt, ph.Filesz)
	}
	notes := make([]byte, ph.Filesz)
	if err := readAt(img, notes, int64(ph.Off)); err != nil {
		return err
	}
	entry, ok, err := findPVHEntry(notes, ph.Align)
	if err != nil || !ok {
		return err
	}
	k.protocol = PVH
	k.entry = entry
	// Linux keeps only 32 bits of a module's address.
	k.initrdLimits = []memory.GPA{mappedEnd}
	return nil
}

// findPVHEntry looks for the PVH entry point in the notes of a segment. Names and descriptors are padded to 4 bytes, and
// in segments that are aligned so, to 8 (the ELF gABI wants it for 64-bit files; few linkers and no kernel do it).
func findPVHEntry(notes []byte, align uint64) (entry memory.GPA, ok bool, err error) {
	if align != 8 {
		align = noteAlignment
	}
	le := binary.LittleEndian
	size := uint64(len(notes))
	for off := uint64(0); size-off >= noteHeaderSize; {
		nameSize, descSize, typ := uint64(le.Uint32(notes[off:])), uint64(le.Uint32(notes[off+4:])), le.Uint32(notes[off+8:])
		// None of these can overflow: offsets are below 64 Ki, and sizes below 4 Gi.
		name := off + noteHeaderSize
		desc := alignUp(name+nameSize, align)
		end := desc + descSize
		if end > size {
			return 0, false, fmt.Errorf("%w: the note at %d ends at %d, beyond the %d bytes of notes", ErrCorrupt, off, end, size)
		}
		if typ == notePhys32 && string(notes[name:name+nameSize]) == noteNameXen {
			switch descSize {
			case 4:
				return memory.GPA(le.Uint32(notes[desc:])), true, nil
			case 8:
				return memory.GPA(le.Uint64(notes[desc:])), true, nil
			}
			return 0, false, fmt.Errorf("%w: a PVH entry point of %d bytes", ErrCorrupt, descSize)
		}
		off = min(alignUp(end, align), size)
	}
	return 0, false, nil
}
