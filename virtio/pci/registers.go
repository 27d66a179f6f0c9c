package pci

import (
	"encoding/binary"

	"vmm/virtio"
)

// bar is the devices.Device of BAR 0.
type bar struct{ t *Transport }

// Read implements devices.Device.
func (b bar) Read(off uint64, p []byte) {
	t := b.t
	part, off := off&^(partSize-1), off%partSize
	if part == configStart {
		t.cfg.Device.ReadConfig(uint32(off), p)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch part {
	case commonStart:
		t.readCommon(off, p)
	case isrStart:
		clear(p)
		if off == 0 {
			p[0] = t.intx.take()
		}
	case tableStart:
		t.readTable(off, p)
	case pbaStart:
		t.readPending(off, p)
	default:
		clear(p)
	}
}

// Write implements devices.Device.
func (b bar) Write(off uint64, p []byte) {
	t := b.t
	part, off := off&^(partSize-1), off%partSize
	switch part {
	case configStart:
		t.cfg.Device.WriteConfig(uint32(off), p)
		return
	case notifyStart: // where the host's kernel does not do it
		if i := off / notifyEach; i < uint64(len(t.kicks)) {
			t.kicks[i].Signal()
		}
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch part {
	case commonStart:
		t.writeCommon(off, p)
	case tableStart:
		t.writeTable(off, p)
	}
}

// readCommon reads from the common configuration; mu is held.
func (t *Transport) readCommon(off uint64, p []byte) {
	le := binary.LittleEndian
	s := &t.state
	var r [commonSize]byte
	le.PutUint32(r[regDeviceFeatureSelect:], s.deviceFeatureSelect)
	le.PutUint32(r[regDeviceFeature:], featureWord(t.offered, s.deviceFeatureSelect))
	le.PutUint32(r[regDriverFeatureSelect:], s.driverFeatureSelect)
	le.PutUint32(r[regDriverFeature:], featureWord(s.driverFeatures, s.driverFeatureSelect))
	le.PutUint16(r[regConfigVector:], uint16(t.config.vector.Load()))
	le.PutUint16(r[regNumQueues:], uint16(len(t.sizes)))
	r[regStatus] = s.status
	r[regGeneration] = uint8(t.generation.Load())
	le.PutUint16(r[regQueueSelect:], s.queueSelect)
	if i := int(s.queueSelect); i < len(s.queues) { // else the size is zero: there is no such queue
		q := &s.queues[i]
		le.PutUint16(r[regQueueSize:], q.size)
		le.PutUint16(r[regQueueVector:], uint16(t.interrupts[i].vector.Load()))
		if q.enabled {
			r[regQueueEnable] = 1
		}
		le.PutUint16(r[regQueueNotifyOff:], uint16(i))
		le.PutUint64(r[regQueueDesc:], q.desc)
		le.PutUint64(r[regQueueDriver:], q.driver)
		le.PutUint64(r[regQueueDevice:], q.device)
	}
	clear(p)
	if off < commonSize {
		copy(p, r[off:])
	}
}

// featureWord is the 32-bit word of a feature set that a select register names.
func featureWord(f virtio.Features, selected uint32) uint32 {
	if selected > 1 {
		return 0
	}
	return uint32(f >> (32 * selected))
}

// writeCommon writes to the common configuration; mu is held.
func (t *Transport) writeCommon(off uint64, p []byte) {
	var v uint64
	for i, b := range p {
		v |= uint64(b) << (8 * i)
	}
	s := &t.state
	if t.serving != nil && t.serving.reset {
		return // not before the reset is complete
	}
	type register struct {
		off uint64
		len int
	}
	switch (register{off, len(p)}) {
	case register{regDeviceFeatureSelect, 4}:
		s.deviceFeatureSelect = uint32(v)
	case register{regDriverFeatureSelect, 4}:
		s.driverFeatureSelect = uint32(v)
	case register{regDriverFeature, 4}:
		if s.status&statusFeaturesOK == 0 && s.driverFeatureSelect <= 1 {
			shift := 32 * s.driverFeatureSelect
			s.driverFeatures = s.driverFeatures&^(0xffffffff<<shift) | virtio.Features(v)<<shift
		}
	case register{regConfigVector, 2}:
		t.config.vector.Store(t.checkVector(uint32(v)))
	case register{regStatus, 1}:
		t.writeStatus(uint8(v))
	case register{regQueueSelect, 2}:
		s.queueSelect = uint16(v)
	default:
		if i := int(s.queueSelect); i < len(s.queues) {
			t.writeQueue(i, off, len(p), v)
		}
	}
}

// checkVector returns the vector to use for what the driver asks for: none where it doesn't exist, which the driver reads
// back (§4.1.5.1.2.2).
func (t *Transport) checkVector(v uint32) uint32 {
	if v >= uint32(len(t.vectors)) {
		return noVector
	}
	return v
}

// writeStatus sets bits of device_status; they are cleared by a reset only. mu is held.
func (t *Transport) writeStatus(v uint8) {
	s := &t.state
	if v == 0 {
		t.reset()
		return
	}
	set := v &^ s.status &^ statusNeedsReset
	if set&statusFeaturesOK != 0 && (!t.offered.Has(s.driverFeatures) || !s.driverFeatures.Has(virtio.Version1)) {
		set &^= statusFeaturesOK // as the driver reads back (§3.1.1)
	}
	if set&statusDriverOK != 0 && ((s.status|set)&statusFeaturesOK == 0 || !t.master) {
		set &^= statusDriverOK
	}
	s.status |= set
	if set&statusDriverOK != 0 && t.serving == nil && !t.closed {
		t.activate()
	}
}

// writeQueue writes to a register of queue i; mu is held.
func (t *Transport) writeQueue(i int, off uint64, n int, v uint64) {
	q := &t.state.queues[i]
	if off == regQueueVector && n == 2 {
		t.interrupts[i].vector.Store(t.checkVector(uint32(v)))
		return
	}
	if q.enabled {
		return
	}
	switch {
	case off == regQueueSize && n == 2:
		if v != 0 && v&(v-1) == 0 && v <= uint64(t.sizes[i]) {
			q.size = uint16(v)
		}
	case off == regQueueEnable && n == 2:
		q.enabled = v == 1
	case off >= regQueueDesc && off < regQueueDriver:
		setPart(&q.desc, off-regQueueDesc, n, v)
	case off >= regQueueDriver && off < regQueueDevice:
		setPart(&q.driver, off-regQueueDriver, n, v)
	case off >= regQueueDevice && off < commonSize:
		setPart(&q.device, off-regQueueDevice, n, v)
	}
}

// setPart writes a 64-bit register as a whole, or one of its halves.
func setPart(r *uint64, off uint64, n int, v uint64) {
	switch {
	case off == 0 && n == 8:
		*r = v
	case off%4 == 0 && n == 4:
		*r = *r&^(0xffffffff<<(8*off)) | v<<(8*off)
	}
}
