package measure

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Exits are the exits to user space of one boot, up to the first words of the guest's init.
type Exits struct {
	Monitor, Kernel string
	Quiet           bool // as the command line says
	Total           int
	Reasons         map[string]int // by KVM's reason
	Places          map[string]int // of the reasons IO and MMIO, by "port 0x3f8" or "page 0xfee00000"
}

// An access leaves two events: what the guest did, and that KVM had no device for it. The first is for ports the exit
// of the processor (30 is Intel's code for it, 0x7b is AMD's); kvm_pio comes too late for reads. For memory it is kvm_mmio,
// as an exit knows only the page.
func exitEvents() map[string]string {
	return map[string]string{
		"kvm/kvm_userspace_exit": "",
		"kvm/kvm_exit":           "(isa == 1 && exit_reason == 30) || (isa == 2 && exit_reason == 0x7b)",
		"kvm/kvm_mmio":           "",
	}
}

// countExits boots the command's guest.
func countExits(ctx context.Context, args []string) (_ *Exits, err error) {
	t, err := startTrace(exitEvents())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	m, err := launch(ctx, args, pipe)
	if err != nil {
		return nil, err
	}
	c := newExitCounter()
	counted := make(chan error, 1)
	go func() { counted <- c.countAll(t, m.cmd.Process.Pid) }()
	err = m.waitUp()
	err = errors.Join(err, t.mark(), <-counted)
	return &c.exits, m.end(err)
}

// exitCounter pairs the events.
type exitCounter struct {
	exits Exits
	port  map[int]string // by thread, the last one accessed
	addr  map[int]string
}

func newExitCounter() *exitCounter {
	return &exitCounter{
		exits: Exits{Reasons: map[string]int{}, Places: map[string]int{}},
		port:  map[int]string{}, addr: map[int]string{},
	}
}

func (c *exitCounter) countAll(t *trace, process int) error {
	for e, err := range t.events(process) {
		if err == nil {
			err = c.count(e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *exitCounter) count(e event) error {
	switch e.name {
	case "kvm_exit": // … info1 0x00000000000000a1 …: bits 31:16 are the port, with Intel and AMD
		info, err := strconv.ParseUint(strings.TrimPrefix(after(e.args, "info1 "), "0x"), 16, 64)
		if err != nil {
			return fmt.Errorf("event kvm_exit: %w: %q", err, e.args)
		}
		c.port[e.thread] = fmt.Sprintf("port %#x", uint16(info>>16))
	case "kvm_mmio": // mmio write len 4 gpa 0xb0000000 val 0x0
		gpa, err := strconv.ParseUint(strings.TrimPrefix(after(e.args, "gpa "), "0x"), 16, 64)
		if err != nil {
			return fmt.Errorf("event kvm_mmio: %w: %q", err, e.args)
		}
		c.addr[e.thread] = fmt.Sprintf("page %#x", gpa&^0xfff)
	case "kvm_userspace_exit": // reason KVM_EXIT_IO (2)
		reason, _, _ := strings.Cut(strings.TrimPrefix(after(e.args, "reason "), "KVM_EXIT_"), " ")
		c.exits.Total++
		c.exits.Reasons[reason]++
		switch reason {
		case "IO":
			c.exits.Places[c.port[e.thread]]++
		case "MMIO":
			c.exits.Places[c.addr[e.thread]]++
		}
	}
	return nil
}

// after returns the word of s after the first prefix in it.
func after(s, prefix string) string {
	_, s, _ = strings.Cut(s, prefix)
	s, _, _ = strings.Cut(s, " ")
	return s
}
