package net

import (
	"context"
	"encoding/binary"
	"io"

	"vmm/virtio"
	"vmm/virtio/virtqueue"
)

// Classes and commands of the control queue (§5.1.6.5).
const (
	classRX            = 0
	classMAC           = 1
	classVLAN          = 2
	classMQ            = 4
	classGuestOffloads = 5

	rxNoBcast   = 5 // the last of RX
	macTableSet = 0
	macAddrSet  = 1
	vlanDel     = 1 // the last of VLAN
	mqPairsSet  = 0
	offloadsSet = 0

	ackOK  = 0
	ackErr = 1
)

// control serves the control queue: a class (1), a command (1) and its data, then one device-writable byte.
type control struct {
	d        *Device
	features virtio.Features
	queues   []*virtqueue.Queue // receiving and sending, of all pairs
}

func (c *control) serve(ctx context.Context, q *virtqueue.Queue) error {
	return q.Serve(ctx, func(chain *virtqueue.Chain) uint32 {
		ack := []byte{ackErr}
		if c.execute(&chain.Readable) {
			ack[0] = ackOK
		}
		n, _ := chain.Writable.Write(ack)
		return uint32(n)
	})
}

// execute does a command and reports whether it could.
func (c *control) execute(data *virtqueue.Buffers) bool {
	var header [2]byte
	if _, err := io.ReadFull(data, header[:]); err != nil {
		return false
	}
	switch class, command := header[0], header[1]; class {
	case classRX: // switches of filters, which there are none of, as with those below
		var on [1]byte
		_, err := io.ReadFull(data, on[:])
		return err == nil && command <= rxNoBcast
	case classVLAN:
		var id [2]byte
		_, err := io.ReadFull(data, id[:])
		return err == nil && command <= vlanDel
	case classMAC:
		switch command {
		case macTableSet:
			unicast := skipMACs(data)
			return unicast && skipMACs(data) // multicast
		case macAddrSet:
			var mac [6]byte
			if _, err := io.ReadFull(data, mac[:]); err != nil || mac[0]&1 != 0 {
				return false
			}
			c.d.setMAC(mac[:])
			return true
		}
	case classMQ:
		var n [2]byte
		if _, err := io.ReadFull(data, n[:]); err != nil || command != mqPairsSet {
			return false
		}
		pairs := int(binary.LittleEndian.Uint16(n[:]))
		if pairs < 1 || pairs > len(c.queues)/2 || c.d.setPairs(pairs) != nil {
			return false
		}
		for _, q := range c.queues { // whose goroutines sleep while their pair is not in use
			if q != nil {
				q.Wake()
			}
		}
		return true
	case classGuestOffloads:
		var f [8]byte
		if _, err := io.ReadFull(data, f[:]); err != nil || command != offloadsSet {
			return false
		}
		want := virtio.Features(binary.LittleEndian.Uint64(f[:]))
		if !(c.features & guestOffloads).Has(want) {
			return false
		}
		return c.d.setOffloads(want) == nil
	}
	return false
}

// skipMACs takes one table of addresses off data, and reports whether it is whole.
func skipMACs(data *virtqueue.Buffers) bool {
	var entries [4]byte
	if _, err := io.ReadFull(data, entries[:]); err != nil {
		return false
	}
	size := 6 * uint64(binary.LittleEndian.Uint32(entries[:]))
	return size <= uint64(data.Len()) && data.Skip(int(size)) == int(size)
}
