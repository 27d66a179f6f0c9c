package measure

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Size is what a monitor with an idle guest keeps in memory beyond the guest's own, its helper processes included.
type Size struct {
	Monitor, Kernel string
	RSS             uint64 // resident, in bytes, what is shared with other processes counted in full
	PSS             uint64 // the same, what is shared counted by parts
	Guest           uint64 // the guest's own memory, as far as it is resident
	Processes       int
	Parts           map[string]uint64 // RSS by file, or "anonymous"
}

// settle is how long a guest that has booted gets to become idle.
const settle = 3 * time.Second

// weigh boots the command's guest of memory bytes, on a terminal, and lets it become idle.
func weigh(ctx context.Context, args []string, memory uint64) (*Size, error) {
	m, err := launch(ctx, args, terminal)
	if err != nil {
		return nil, err
	}
	s := &Size{Parts: map[string]uint64{}}
	if err = m.waitUp(); err == nil {
		time.Sleep(settle)
		err = s.addTree(strconv.Itoa(m.cmd.Process.Pid), memory)
	}
	return s, m.end(err)
}

// addTree adds the process and all its children.
func (s *Size) addTree(pid string, memory uint64) error {
	s.Processes++
	smaps, err := os.Open(filepath.Join("/proc", pid, "smaps"))
	if err != nil {
		return err
	}
	defer smaps.Close()
	if err := s.add(smaps, memory); err != nil {
		return fmt.Errorf("%s: %w", smaps.Name(), err)
	}
	threads, err := os.ReadDir(filepath.Join("/proc", pid, "task"))
	if err != nil {
		return err
	}
	for _, thread := range threads {
		children, err := os.ReadFile(filepath.Join("/proc", pid, "task", thread.Name(), "children"))
		if err != nil {
			return err
		}
		for _, child := range strings.Fields(string(children)) {
			if err := s.addTree(child, memory); err != nil {
				return err
			}
		}
	}
	return nil
}

// add adds the mappings that smaps lists (proc(5)). Those without a file that are as large as the guest's memory are
// the guest's memory.
func (s *Size) add(smaps io.Reader, memory uint64) error {
	var part string
	var guest bool
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			return fmt.Errorf("line %q", lines.Text())
		}
		if !strings.HasSuffix(fields[0], ":") { // a mapping: its range, access, offset, device, inode, and file
			start, end, _ := strings.Cut(fields[0], "-")
			from, err1 := strconv.ParseUint(start, 16, 64)
			to, err2 := strconv.ParseUint(end, 16, 64)
			if err := errors.Join(err1, err2); err != nil {
				return err
			}
			part = "anonymous"
			if len(fields) > 5 {
				part = filepath.Base(fields[5])
			}
			guest = to-from == memory && part == "anonymous"
			continue
		}
		kib, err := strconv.ParseUint(fields[1], 10, 64)
		if err != nil {
			continue // not a size, like VmFlags
		}
		switch {
		case fields[0] == "Rss:" && guest:
			s.Guest += kib << 10
		case fields[0] == "Rss:" && kib > 0:
			s.RSS += kib << 10
			s.Parts[part] += kib << 10
		case fields[0] == "Pss:" && !guest:
			s.PSS += kib << 10
		}
	}
	return lines.Err()
}

// release returns the running kernel's.
func release() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", err
	}
	return unix.ByteSliceToString(name.Release[:]), nil
}
