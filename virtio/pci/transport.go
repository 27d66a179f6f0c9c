package pci

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	devpci "vmm/devices/pci"
	"vmm/internal/eventfd"
	"vmm/memory"
	"vmm/virtio"
	"vmm/virtio/virtqueue"
)

// Transport carries a device. Its registers are [devices.Device]s of the function's BAR.
type Transport struct {
	cfg        Config
	offered    virtio.Features
	sizes      []uint16 // the greatest of each queue
	function   *devpci.Function
	kicks      []*eventfd.EventFD // of each queue
	vectors    []vector
	interrupts []*queueInterrupt // of each queue
	config     *queueInterrupt   // of the configuration
	intx       intx

	msix       atomic.Bool // MSI-X is enabled: the guest gets no INTx
	generation atomic.Uint32

	mu       sync.Mutex // guards what follows; taken after the PCI root's, before intx.mu
	state    state
	serving  *serving // the device's Serve, from DRIVER_OK until it has returned
	doorbell uint64   // where the BAR is mapped; zero where it isn't
	masked   bool     // the function mask of MSI-X
	master   bool     // the function may access memory
	closed   bool
}

// state is what a reset of the device renews.
type state struct {
	deviceFeatureSelect, driverFeatureSelect uint32
	driverFeatures                           virtio.Features
	status                                   uint8
	queueSelect                              uint16
	queues                                   []queueState
}

// queueState is how the driver has set up a queue.
type queueState struct {
	size                 uint16
	enabled              bool
	desc, driver, device uint64
}

// serving is one run of the device's Serve.
type serving struct {
	cancel context.CancelFunc
	done   chan struct{}
	reset  bool // the driver has asked for a reset meanwhile
}

// New makes a transport for cfg.Device. Its function is put on a bus by the caller; [Transport.Close] must come after the
// vCPUs have stopped.
func New(cfg Config) (_ *Transport, err error) {
	t := &Transport{
		cfg:     cfg,
		offered: cfg.Device.Features() | virtio.Version1 | virtio.IndirectDesc | virtio.EventIdx,
		sizes:   cfg.Device.QueueSizes(),
	}
	if n := len(t.sizes) + 1; n > maxVectors {
		return nil, fmt.Errorf("virtio %v: %d queues, at most %d", cfg.Device.ID(), len(t.sizes), maxVectors-1)
	}
	t.intx.line = cfg.INTx
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	if t.intx.forward, err = eventfd.New(); err != nil {
		return nil, err
	}
	for i := range t.sizes {
		kick, err := eventfd.New()
		if err != nil {
			return nil, err
		}
		t.kicks = append(t.kicks, kick)
		t.interrupts = append(t.interrupts, newQueueInterrupt(t, isrQueue))
		if s := t.sizes[i]; s == 0 || s&(s-1) != 0 {
			return nil, fmt.Errorf("virtio %v: queue %d has size %d: not a power of two", cfg.Device.ID(), i, s)
		}
	}
	t.config = newQueueInterrupt(t, isrConfig)
	for range len(t.sizes) + 1 {
		v, err := newVector(cfg.Host)
		if err != nil {
			return nil, err
		}
		t.vectors = append(t.vectors, v)
	}
	t.renew()
	if err := t.buildFunction(); err != nil {
		return nil, err
	}
	if n, ok := cfg.Device.(virtio.ConfigNotifier); ok {
		n.OnConfigChange(t.configChanged)
	}
	return t, nil
}

// Function is the PCI function to put on a bus.
func (t *Transport) Function() *devpci.Function { return t.function }

// Close stops the device and waits for it. No vCPU may run any more.
func (t *Transport) Close() {
	t.mu.Lock()
	t.closed = true
	s := t.serving
	if s != nil {
		s.cancel()
	}
	if t.doorbell != 0 {
		t.unbindDoorbells()
	}
	t.mu.Unlock()
	if s != nil {
		<-s.done
	}
	for _, v := range t.vectors {
		v.close()
	}
	for _, e := range append(t.kicks, t.intx.forward) {
		if e != nil {
			_ = e.Close() // an eventfd's close does not fail
		}
	}
}

// renew puts the registers into the state after a reset; mu is held, or nobody else has t yet.
func (t *Transport) renew() {
	t.state = state{queues: make([]queueState, len(t.sizes))}
	for i := range t.state.queues {
		t.state.queues[i].size = t.sizes[i]
		t.interrupts[i].vector.Store(noVector)
	}
	t.config.vector.Store(noVector)
	for i := range t.vectors {
		t.vectors[i].forget()
	}
	t.intx.clear()
}

// reset ends the use of the device; it is complete, and the registers are renewed, when the device has stopped. mu is
// held.
func (t *Transport) reset() {
	if t.serving == nil {
		t.renew()
		return
	}
	t.serving.reset = true
	t.serving.cancel()
}

// activate takes the device into use: the driver has set DRIVER_OK. mu is held.
func (t *Transport) activate() {
	a := virtio.Activation{
		Features: t.state.driverFeatures,
		Memory:   t.cfg.Memory,
		Queues:   make([]*virtqueue.Queue, len(t.sizes)),
	}
	for i, qs := range t.state.queues {
		if !qs.enabled {
			continue
		}
		q, err := virtqueue.New(virtqueue.Config{
			Memory: t.cfg.Memory, Size: qs.size,
			Desc: memory.GPA(qs.desc), Avail: memory.GPA(qs.driver), Used: memory.GPA(qs.device),
			EventIdx: t.state.driverFeatures.Has(virtio.EventIdx),
			Indirect: t.state.driverFeatures.Has(virtio.IndirectDesc),
			Kick:     t.kicks[i], Interrupt: t.interrupts[i],
		})
		if err != nil {
			t.needsReset()
			return
		}
		a.Queues[i] = q
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &serving{cancel: cancel, done: make(chan struct{})}
	t.serving = s
	go func() {
		stop := t.forwardINTx()
		err := t.cfg.Device.Serve(ctx, a)
		if err == nil && ctx.Err() == nil {
			err = errStopped
		}
		cancel()
		stop()
		t.served(s, err)
	}()
}

var errStopped = errors.New("the device stopped by itself")

// served does what there is to do when the device's Serve has returned.
func (t *Transport) served(s *serving, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer close(s.done)
	t.serving = nil
	switch {
	case s.reset:
		t.renew()
	case err != nil:
		t.needsReset()
	default: // it lost the right to touch memory
		t.state.status &^= statusDriverOK
	}
}

// needsReset tells the driver that the device is of no use before its next reset (§2.1.2); mu is held.
func (t *Transport) needsReset() {
	t.state.status |= statusNeedsReset
	if t.state.status&statusDriverOK != 0 {
		t.config.Signal()
	}
}

// configChanged is called by the device.
func (t *Transport) configChanged() {
	t.generation.Add(1)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state.status&statusDriverOK != 0 && !t.closed {
		t.config.Signal()
	}
}

// onCommand follows the function's command register.
func (t *Transport) onCommand(command uint16) {
	t.intx.disable(command&devpci.CommandINTxDisable != 0)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.master = command&devpci.CommandBusMaster != 0
	if !t.master && t.serving != nil {
		t.serving.cancel()
	}
}

// onFunctionReset is the function level reset.
func (t *Transport) onFunctionReset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.setMSIX(0)
	for i := range t.vectors {
		t.vectors[i].renew()
	}
	t.reset()
}

// pending tells whether the device may still touch the guest's memory.
func (t *Transport) pending() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.serving != nil
}

// bindDoorbells gives the queues' notification addresses to the host's kernel.
func (t *Transport) bindDoorbells(bar uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.doorbell = bar
	for i, kick := range t.kicks {
		// Where it is refused, the write comes to us.
		_ = t.cfg.Host.BindDoorbell(bar+notifyStart+notifyEach*uint64(i), kick)
	}
}

// unbindDoorbells takes them back; mu is held.
func (t *Transport) unbindDoorbells() {
	for i, kick := range t.kicks {
		t.cfg.Host.UnbindDoorbell(t.doorbell+notifyStart+notifyEach*uint64(i), kick)
	}
	t.doorbell = 0
}
