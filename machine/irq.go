package machine

import (
	"sync"

	"vmm/kvm"
)

// Pins of the interrupt controllers that KVM emulates.
const (
	picPins    = 8
	ioapicPins = 24
)

// defaultRoutes is the GSI routing of a PC: each of the first sixteen GSIs reaches its pin of the PIC pair and, under
// the same number, of the I/O APIC; the timer's GSI 0 comes in on the I/O APIC's pin 2, as the MADT's interrupt source
// override tells the guest. GSIs from 24 on are free for messages, which a
// [router] adds to this table.
func defaultRoutes() []kvm.GSIRoute {
	var routes []kvm.GSIRoute
	for gsi := range uint32(ioapicPins) {
		switch {
		case gsi < picPins:
			routes = append(routes, kvm.IRQChipRoute(gsi, kvm.PICMaster, gsi))
		case gsi < 2*picPins:
			routes = append(routes, kvm.IRQChipRoute(gsi, kvm.PICSlave, gsi-picPins))
		}
		switch gsi {
		case 0:
			routes = append(routes, kvm.IRQChipRoute(gsi, kvm.IOAPIC, 2))
		case 2: // the cascade of the PICs: nothing else drives it
		default:
			routes = append(routes, kvm.IRQChipRoute(gsi, kvm.IOAPIC, gsi))
		}
	}
	return routes
}

// gsiLine is the wire of one GSI. It can be led from one board to the next, so that a device which outlives a reset
// keeps its line; while it is connected to none, levels go nowhere.
type gsiLine struct {
	gsi uint32
	mu  sync.RWMutex // guards vm: held for reading while KVM is called, so that the file is not closed meanwhile
	vm  *kvm.VM
}

// SetLevel implements devices.IRQLine.
func (l *gsiLine) SetLevel(high bool) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.vm == nil {
		return nil
	}
	return l.vm.IRQLine(l.gsi, high)
}

// connect leads the wire to another board, or to none; SetLevel calls under way have ended when it returns.
func (l *gsiLine) connect(vm *kvm.VM) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.vm = vm
}
