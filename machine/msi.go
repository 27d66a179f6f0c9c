package machine

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"vmm/internal/eventfd"
	"vmm/kvm"
	virtiopci "vmm/virtio/pci"
)

// router owns the GSI routing table of a board's VM: the wires of a PC, and the messages that the guest programs. KVM
// takes the table as a whole only.
type router struct {
	vm   *kvm.VM
	most uint32 // GSIs that KVM can route

	mu       sync.Mutex // guards what follows; held while KVM is called
	next     uint32     // the first GSI that nobody has
	messages map[uint32]kvm.GSIRoute
}

// newRouter gives vm the wires.
func newRouter(vm *kvm.VM) (*router, error) {
	most, err := vm.Extension(kvm.CapIRQRouting)
	if err != nil {
		return nil, err
	}
	r := &router{vm: vm, most: uint32(most), next: ioapicPins, messages: make(map[uint32]kvm.GSIRoute)}
	return r, r.tell()
}

// tell gives KVM the whole table; mu is held, or nobody else has r yet.
func (r *router) tell() error {
	routes := defaultRoutes()
	for _, gsi := range slices.Sorted(maps.Keys(r.messages)) {
		routes = append(routes, r.messages[gsi])
	}
	return r.vm.SetGSIRouting(routes)
}

// allot returns a GSI for a message.
func (r *router) allot() (uint32, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next >= r.most {
		return 0, fmt.Errorf("message-signalled interrupts: all %d GSIs of this host's KVM are taken", r.most)
	}
	r.next++
	return r.next - 1, nil
}

// route makes gsi send the message.
func (r *router) route(gsi uint32, addr uint64, data uint32) error {
	message := kvm.MSIRoute(gsi, addr, data)
	r.mu.Lock()
	defer r.mu.Unlock()
	old, had := r.messages[gsi]
	if had && old == message {
		return nil
	}
	r.messages[gsi] = message
	err := r.tell()
	if err != nil { // an address that KVM refuses must not spoil the table for the others
		delete(r.messages, gsi)
		if had {
			r.messages[gsi] = old
		}
	}
	return err
}

// vector is a message-signalled interrupt of a virtio device. It implements virtiopci.Vector.
type vector struct {
	router *router
	gsi    uint32
	event  *eventfd.EventFD
}

// Connect implements virtiopci.Vector. What the eventfd has waiting is delivered by KVM when it is bound.
func (v *vector) Connect(addr uint64, data uint32) error {
	if err := v.router.route(v.gsi, addr, data); err != nil {
		return err
	}
	return v.router.vm.IRQFD(kvm.IRQFD{FD: v.event.FD(), GSI: v.gsi})
}

// Disconnect implements virtiopci.Vector.
func (v *vector) Disconnect() {
	// It was bound, so it can be unbound.
	_ = v.router.vm.IRQFD(kvm.IRQFD{FD: v.event.FD(), GSI: v.gsi, Flags: kvm.IRQFDDeassign})
}

// virtioHost is what a board is to its virtio transports.
type virtioHost struct {
	vm           *kvm.VM
	router       *router
	doorbellSize uint32 // of a write that is a kick; zero for any
}

// kickSize is the width of the write that is a kick, for a KVM that wants to know: drivers write the queue's number.
const kickSize = 2

func newVirtioHost(vm *kvm.VM, r *router) (*virtioHost, error) {
	h := &virtioHost{vm: vm, router: r, doorbellSize: kickSize}
	// A doorbell of any width need not be looked at as an instruction: Intel's processors tell the address alone, and KVM
	// is done with it several times faster.
	anyLength, err := vm.Extension(kvm.CapIOEventFDAnyLength)
	if anyLength != 0 {
		h.doorbellSize = 0
	}
	return h, err
}

// BindDoorbell implements virtiopci.Host.
func (h *virtioHost) BindDoorbell(addr uint64, e *eventfd.EventFD) error {
	return h.vm.IOEventFD(kvm.IOEvent{Addr: addr, Len: h.doorbellSize, FD: e.FD()})
}

// UnbindDoorbell implements virtiopci.Host.
func (h *virtioHost) UnbindDoorbell(addr uint64, e *eventfd.EventFD) {
	// Where binding it was refused, so is this.
	_ = h.vm.IOEventFD(kvm.IOEvent{Addr: addr, Len: h.doorbellSize, FD: e.FD(), Flags: kvm.IOEventDeassign})
}

// NewVector implements virtiopci.Host.
func (h *virtioHost) NewVector(e *eventfd.EventFD) (virtiopci.Vector, error) {
	gsi, err := h.router.allot()
	if err != nil {
		return nil, err
	}
	return &vector{router: h.router, gsi: gsi, event: e}, nil
}
