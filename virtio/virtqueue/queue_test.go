package virtqueue

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/internal/eventfd"
	"vmm/internal/leak"
	"vmm/memory"
)

func TestMain(m *testing.M) { leak.Main(m) }

// Where things are in the guest's memory, which begins at base.
const (
	base      = 0x10_0000
	descAddr  = base
	availAddr = base + 0x1000
	usedAddr  = base + 0x2000
	tableAddr = base + 0x3000 // an indirect table
	dataAddr  = base + 0x4000
	ramSize   = 0x1_0000
)

// counter is an interrupt that counts.
type counter int

func (c *counter) Signal() { *c++ }
func (c *counter) FD() int { return -1 }

// rig is a queue and the memory that it is in.
type rig struct {
	*Queue
	ram        []byte
	interrupts counter
}

func newRig(t testing.TB, change func(*Config)) *rig {
	t.Helper()
	r := &rig{ram: make([]byte, ramSize)}
	mem, err := memory.FromSlices(memory.Region{Start: base, Bytes: r.ram})
	require.NoError(t, err)
	kick, err := eventfd.New()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, kick.Close()) })
	cfg := Config{
		Memory: mem, Size: 4, Desc: descAddr, Avail: availAddr, Used: usedAddr, Indirect: true,
		Kick: kick, Interrupt: &r.interrupts,
	}
	if change != nil {
		change(&cfg)
	}
	r.Queue, err = New(cfg)
	require.NoError(t, err)
	return r
}

func (r *rig) at(addr memory.GPA, n int) []byte { return r.ram[addr-base:][:n] }

func (r *rig) put16(addr memory.GPA, v uint16) { binary.LittleEndian.PutUint16(r.at(addr, 2), v) }
func (r *rig) get16(addr memory.GPA) uint16    { return binary.LittleEndian.Uint16(r.at(addr, 2)) }

// desc is a descriptor, byte by byte as §2.7.5 has it.
func desc(addr uint64, size uint32, flags, next uint16) []byte {
	return []byte{
		byte(addr), byte(addr >> 8), byte(addr >> 16), byte(addr >> 24), byte(addr >> 32), byte(addr >> 40), byte(addr >> 48), byte(addr >> 56),
		byte(size), byte(size >> 8), byte(size >> 16), byte(size >> 24),
		byte(flags), byte(flags >> 8), byte(next), byte(next >> 8),
	}
}

// offer makes heads available, from the avail.idx on that is there.
func (r *rig) offer(heads ...uint16) {
	idx := r.get16(availAddr + 2)
	for _, h := range heads {
		r.put16(availAddr+4+2*memory.GPA(idx%r.Size()), h)
		idx++
	}
	r.put16(availAddr+2, idx)
}

const (
	next     = 1
	write    = 2
	indirect = 4
)

func TestChains(t *testing.T) {
	type chain struct{ readable, writable []int } // offsets from dataAddr, and lengths
	for _, c := range []struct {
		name  string
		descs [][]byte // of the queue's table, from 0 on
		table [][]byte // at tableAddr
		plain bool     // VIRTIO_F_INDIRECT_DESC was not negotiated
		want  *chain   // nil: malformed
		head  uint16
	}{
		{name: "one to read", descs: [][]byte{desc(dataAddr, 8, 0, 0)}, want: &chain{readable: []int{0, 8}}},
		{name: "one to write", descs: [][]byte{desc(dataAddr, 8, write, 0)}, want: &chain{writable: []int{0, 8}}},
		{
			name:  "several, in any order of the table",
			descs: [][]byte{desc(dataAddr+32, 8, write, 0), desc(dataAddr, 8, next, 3), nil, desc(dataAddr+16, 4, next|write, 0)},
			head:  1, want: &chain{readable: []int{0, 8}, writable: []int{16, 4, 32, 8}},
		},
		{
			name: "all that there are",
			descs: [][]byte{
				desc(dataAddr, 1, next, 1), desc(dataAddr+1, 1, next, 2), desc(dataAddr+2, 1, next, 3), desc(dataAddr+3, 1, 0, 0),
			},
			want: &chain{readable: []int{0, 1, 1, 1, 2, 1, 3, 1}},
		},
		{name: "next without the flag means nothing", descs: [][]byte{desc(dataAddr, 8, 0, 77)}, want: &chain{readable: []int{0, 8}}},
		{name: "the last byte of memory", descs: [][]byte{desc(base+ramSize-1, 1, 0, 0)}, want: &chain{readable: []int{base + ramSize - 1 - dataAddr, 1}}},
		{name: "a loop", descs: [][]byte{desc(dataAddr, 8, next, 0)}},
		{name: "a longer loop", descs: [][]byte{desc(dataAddr, 8, next, 1), desc(dataAddr, 8, next, 0)}},
		{name: "beyond the table", descs: [][]byte{desc(dataAddr, 8, next, 4)}},
		{name: "far beyond the table", descs: [][]byte{desc(dataAddr, 8, next, 65535)}},
		{name: "nothing", descs: [][]byte{desc(dataAddr, 0, 0, 0)}},
		{name: "nothing in the middle", descs: [][]byte{desc(dataAddr, 8, next, 1), desc(dataAddr, 0, next, 2), desc(dataAddr, 8, 0, 0)}},
		{name: "no memory", descs: [][]byte{desc(0, 8, 0, 0)}},
		{name: "beyond memory", descs: [][]byte{desc(base+ramSize-4, 8, 0, 0)}},
		{name: "beyond the address space", descs: [][]byte{desc(1<<64-4, 8, 0, 0)}},
		{name: "very long", descs: [][]byte{desc(dataAddr, 1<<32-1, 0, 0)}},
		{name: "to read after to write", descs: [][]byte{desc(dataAddr, 8, next|write, 1), desc(dataAddr, 8, 0, 0)}},

		{
			name:  "indirect",
			descs: [][]byte{desc(tableAddr, 32, indirect, 0)},
			table: [][]byte{desc(dataAddr, 8, next, 1), desc(dataAddr+8, 4, write, 0)},
			want:  &chain{readable: []int{0, 8}, writable: []int{8, 4}},
		},
		{
			name:  "indirect after direct ones",
			descs: [][]byte{desc(dataAddr, 1, next, 1), desc(tableAddr, 16, indirect, 0)},
			table: [][]byte{desc(dataAddr+8, 4, write, 0)},
			want:  &chain{readable: []int{0, 1}, writable: []int{8, 4}},
		},
		{
			name:  "the write flag of an indirect table means nothing",
			descs: [][]byte{desc(tableAddr, 16, indirect|write, 0)},
			table: [][]byte{desc(dataAddr, 8, 0, 0)},
			want:  &chain{readable: []int{0, 8}},
		},
		{name: "indirect without the feature", plain: true, descs: [][]byte{desc(tableAddr, 16, indirect, 0)}, table: [][]byte{desc(dataAddr, 8, 0, 0)}},
		{name: "indirect with a next", descs: [][]byte{desc(tableAddr, 16, indirect|next, 1), desc(dataAddr, 8, 0, 0)}, table: [][]byte{desc(dataAddr, 8, 0, 0)}},
		{name: "an empty table", descs: [][]byte{desc(tableAddr, 0, indirect, 0)}},
		{name: "half a descriptor", descs: [][]byte{desc(tableAddr, 24, indirect, 0)}, table: [][]byte{desc(dataAddr, 8, 0, 0)}},
		{name: "a table longer than the queue", descs: [][]byte{desc(tableAddr, 80, indirect, 0)}, table: [][]byte{desc(dataAddr, 8, 0, 0)}},
		{name: "a table that is not memory", descs: [][]byte{desc(base+ramSize, 16, indirect, 0)}},
		{name: "a table in a table", descs: [][]byte{desc(tableAddr, 16, indirect, 0)}, table: [][]byte{desc(tableAddr, 16, indirect, 0)}},
		{name: "beyond the indirect table", descs: [][]byte{desc(tableAddr, 16, indirect, 0)}, table: [][]byte{desc(dataAddr, 8, next, 1), desc(dataAddr, 8, 0, 0)}},
		{name: "a loop in the indirect table", descs: [][]byte{desc(tableAddr, 16, indirect, 0)}, table: [][]byte{desc(dataAddr, 8, next, 0)}},
		{
			name:  "more buffers than the queue has entries",
			descs: [][]byte{desc(dataAddr, 1, next, 1), desc(tableAddr, 64, indirect, 0)},
			table: [][]byte{desc(dataAddr, 1, next, 1), desc(dataAddr, 1, next, 2), desc(dataAddr, 1, next, 3), desc(dataAddr, 1, 0, 0)},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, func(cfg *Config) { cfg.Indirect = !c.plain })
			for i, d := range c.descs {
				copy(r.at(descAddr+16*memory.GPA(i), 16), d)
			}
			copy(r.at(tableAddr, 80), slices.Concat(c.table...))
			r.offer(c.head)
			var got Chain
			ok, err := r.Pop(&got)
			require.NoError(t, err)
			if c.want == nil {
				require.False(t, ok)
				require.Equal(t, uint64(1), r.Malformed())
				require.Equal(t, []byte{0, 0, 1, 0, byte(c.head), 0, 0, 0, 0, 0, 0, 0}, r.at(usedAddr, 12), "given back, with nothing written")
				return
			}
			require.True(t, ok)
			require.Equal(t, c.head, got.Head())
			for _, part := range []struct {
				want []int
				got  Buffers
			}{{c.want.readable, got.Readable}, {c.want.writable, got.Writable}} {
				require.Len(t, part.got, len(part.want)/2)
				for i, p := range part.got {
					require.Len(t, p, part.want[2*i+1])
					require.Same(t, &r.at(dataAddr+memory.GPA(part.want[2*i]), 1)[0], &p[0])
				}
			}
		})
	}
}

func TestBrokenRings(t *testing.T) {
	for name, breaks := range map[string]func(r *rig){
		"head beyond the table":    func(r *rig) { r.offer(4) },
		"avail.idx too far ahead":  func(r *rig) { r.put16(availAddr+2, 5) },
		"avail.idx behind":         func(r *rig) { r.put16(availAddr+2, 65535) },
		"avail.idx gone backwards": func(r *rig) { r.offer(0); _, _ = r.Pop(new(Chain)); r.put16(availAddr+2, 0) },
	} {
		r := newRig(t, nil)
		copy(r.at(descAddr, 16), desc(dataAddr, 8, 0, 0))
		breaks(r)
		_, err := r.Pop(new(Chain))
		require.ErrorAs(t, err, new(*Error), name)
	}
}

func TestSetUpErrors(t *testing.T) {
	mem, err := memory.FromSlices(memory.Region{Start: base, Bytes: make([]byte, ramSize)})
	require.NoError(t, err)
	good := Config{Memory: mem, Size: 4, Desc: descAddr, Avail: availAddr, Used: usedAddr}
	for want, change := range map[string]func(*Config){
		"size 0":                        func(c *Config) { c.Size = 0 },
		"size 3":                        func(c *Config) { c.Size = 3 },
		"size 65535":                    func(c *Config) { c.Size = 65535 },
		"descriptor table at 0x100008":  func(c *Config) { c.Desc += 8 },
		"avail ring at 0x101001":        func(c *Config) { c.Avail++ },
		"used ring at 0x102002":         func(c *Config) { c.Used += 2 },
		"descriptor table: guest":       func(c *Config) { c.Desc = base + ramSize - 16 },
		"avail ring: guest":             func(c *Config) { c.Avail = 0 },
		"used ring: guest memory [0xff": func(c *Config) { c.Used = 1<<64 - 4 },
	} {
		cfg := good
		change(&cfg)
		_, err := New(cfg)
		require.ErrorContains(t, err, want)
	}
}

// The used ring, byte by byte, as §2.7.8 has it, over the end of the ring.
func TestUsedRing(t *testing.T) {
	r := newRig(t, nil)
	for i := range memory.GPA(4) {
		copy(r.at(descAddr+16*i, 16), desc(dataAddr, 8, write, 0))
	}
	var c [4]Chain
	r.offer(3, 1, 0, 2)
	for i := range c {
		ok, err := r.Pop(&c[i])
		require.NoError(t, err)
		require.True(t, ok)
	}
	r.Push(&c[1], 5)
	r.Add(&c[0], 0x01020304)
	require.Equal(t, uint16(1), r.get16(usedAddr+2), "what was added is not visible")
	r.Publish()
	require.Equal(t, []byte{
		0, 0, 2, 0,
		1, 0, 0, 0, 5, 0, 0, 0,
		3, 0, 0, 0, 4, 3, 2, 1,
		0, 0, 0, 0, 0, 0, 0, 0,
	}, r.at(usedAddr, 28))
	r.Push(&c[2], 0)
	r.Push(&c[3], 0)
	r.offer(2)
	_, err := r.Pop(&c[0])
	require.NoError(t, err)
	r.Push(&c[0], 9)
	require.Equal(t, []byte{0, 0, 5, 0, 2, 0, 0, 0, 9, 0, 0, 0}, r.at(usedAddr, 12))
}

// Notifications without VIRTIO_F_EVENT_IDX: by flags.
func TestFlags(t *testing.T) {
	r := newRig(t, nil)
	copy(r.at(descAddr, 16), desc(dataAddr, 8, 0, 0))
	var c Chain
	serve := func() {
		r.offer(0)
		ok, err := r.Pop(&c)
		require.NoError(t, err)
		require.True(t, ok)
		r.Push(&c, 0)
		r.Notify()
	}
	serve()
	require.Equal(t, counter(1), r.interrupts)
	r.Notify()
	require.Equal(t, counter(1), r.interrupts, "nothing new")
	r.put16(availAddr, 1) // VIRTQ_AVAIL_F_NO_INTERRUPT
	serve()
	require.Equal(t, counter(1), r.interrupts)
	r.put16(availAddr, 0)
	serve()
	require.Equal(t, counter(2), r.interrupts)

	r.DisableKicks()
	require.Equal(t, []byte{1, 0, 3, 0}, r.at(usedAddr, 4), "VIRTQ_USED_F_NO_NOTIFY beside the index")
	require.False(t, r.EnableKicks())
	require.Equal(t, []byte{0, 0, 3, 0}, r.at(usedAddr, 4))
	r.offer(0)
	require.True(t, r.EnableKicks(), "there is more")
}

// Notifications with VIRTIO_F_EVENT_IDX: by used_event and avail_event, over the indices' end at 65536.
func TestEventIdx(t *testing.T) {
	const usedEvent, availEvent = availAddr + 4 + 2*4, usedAddr + 4 + 8*4
	r := newRig(t, func(c *Config) { c.EventIdx = true })
	copy(r.at(descAddr, 16), desc(dataAddr, 8, 0, 0))
	r.put16(availEvent+2, 0xabcd) // not the device's
	var c Chain
	// One at a time: the driver wants to hear of every fifth (§2.7.7.2: when the event's index was just used).
	for i := range 70_000 {
		idx := uint16(i)
		hears := i%5 == 0
		event := idx
		if !hears {
			event = idx + 5
		}
		r.put16(usedEvent, event)
		before := r.interrupts
		r.offer(0)
		if ok, err := r.Pop(&c); !ok || err != nil {
			t.Fatal(i, ok, err)
		}
		r.Push(&c, 0)
		r.Notify()
		if got := r.interrupts != before; got != hears {
			t.Fatalf("%d: notified %t", i, got)
		}
		if r.EnableKicks() {
			t.Fatal(i, "more")
		}
		if got := r.get16(availEvent); got != idx+1 {
			t.Fatalf("avail_event %d after %d", got, idx)
		}
	}
	require.Equal(t, uint16(0xabcd), r.get16(availEvent+2), "the neighbour")
	r.offer(0)
	require.True(t, r.EnableKicks())

	// Several at once: one notification, if the event's index is among them.
	for _, hears := range []bool{true, false} {
		r.offer(0, 0)
		event := r.get16(usedAddr+2) + 2
		if !hears {
			event++
		}
		r.put16(usedEvent, event)
		before := r.interrupts
		for range 3 {
			if ok, err := r.Pop(&c); ok && err == nil {
				r.Push(&c, 0)
			}
		}
		r.Notify()
		require.Equal(t, hears, r.interrupts != before)
		r.offer(0)
	}
}

// The avail ring's alignment is 2, so its index may be in the lower half of a word or in the upper.
func TestAvailAlignment(t *testing.T) {
	for _, shift := range []memory.GPA{0, 2} {
		r := newRig(t, func(c *Config) { c.Avail, c.EventIdx = availAddr+shift, true })
		copy(r.at(descAddr, 16), desc(dataAddr, 8, 0, 0))
		r.put16(availAddr+shift+2, 1)
		r.put16(availAddr+shift+4+8, 0) // used_event
		r.put16(availAddr+shift-2, 0xffff)
		r.put16(availAddr+shift+4+8+2, 0xffff)
		var c Chain
		ok, err := r.Pop(&c)
		require.NoError(t, err)
		require.True(t, ok)
		r.Push(&c, 0)
		r.Notify()
		require.Equal(t, counter(1), r.interrupts)
	}
}

func TestServeEnds(t *testing.T) {
	r := newRig(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	defer r.WakeWhenDone(ctx)()
	go func() { done <- r.Serve(ctx, func(*Chain) uint32 { return 0 }) }()
	cancel()
	require.NoError(t, <-done)
}

func TestNoAllocation(t *testing.T) {
	r := newRig(t, func(c *Config) { c.EventIdx = true })
	copy(r.at(descAddr, 16), desc(dataAddr, 8, next, 1))
	copy(r.at(descAddr+16, 16), desc(dataAddr, 8, write, 0))
	var c Chain
	require.Zero(t, int(testing.AllocsPerRun(100, func() {
		r.offer(0)
		if ok, _ := r.Pop(&c); !ok {
			panic("none")
		}
		r.Push(&c, 8)
		r.Notify()
		r.EnableKicks()
	})))
}

func TestBuffers(t *testing.T) {
	fresh := func() Buffers { return Buffers{[]byte("ab"), []byte("c"), []byte("def")} }
	b := fresh()
	require.Equal(t, 6, b.Len())
	p := make([]byte, 4)
	n, err := b.Read(p)
	require.NoError(t, err)
	require.Equal(t, "abcd", string(p[:n]))
	n, err = b.Read(p)
	require.NoError(t, err)
	require.Equal(t, "ef", string(p[:n]))
	_, err = b.Read(p)
	require.ErrorIs(t, err, io.EOF)
	n, err = b.Read(nil)
	require.NoError(t, err)
	require.Zero(t, n)

	b = fresh()
	whole := slices.Clone(b)
	n, err = b.Write([]byte("1234"))
	require.NoError(t, err)
	require.Equal(t, 4, n)
	n, err = b.Write([]byte("567"))
	require.ErrorIs(t, err, io.ErrShortWrite)
	require.Equal(t, 2, n)
	require.Equal(t, "123456", string(slices.Concat(whole...)))

	for n := range 8 {
		b = fresh()
		require.Equal(t, min(n, 6), b.Skip(n))
		require.Equal(t, "abcdef"[min(n, 6):], string(slices.Concat(b...)))
		b = fresh()
		b.Limit(n)
		require.Equal(t, "abcdef"[:min(n, 6)], string(slices.Concat(b...)))
		require.Equal(t, min(n, 6), b.Len())
	}
	iov := append(fresh(), nil).AppendIovecs([]unix.Iovec{{}})
	require.Len(t, iov, 4)
	require.Equal(t, uint64(3), iov[3].Len)
}

// FuzzQueue takes the fuzzer's bytes for the whole of the rings.
func FuzzQueue(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 2))
	seed := make([]byte, 200)
	for i := range seed {
		seed[i] = byte(random.Uint32())
	}
	f.Add(seed, true)
	f.Add(slices.Concat(desc(dataAddr, 8, next, 1), desc(tableAddr, 16, indirect, 0), make([]byte, 32), []byte{0, 0, 1, 0}, desc(dataAddr, 1, write, 0)), false)
	f.Fuzz(func(t *testing.T, rings []byte, eventIdx bool) {
		r := newRig(t, func(c *Config) { c.EventIdx = eventIdx })
		for _, part := range []struct {
			addr memory.GPA
			n    int
		}{{descAddr, 64}, {availAddr, 14}, {tableAddr, 64}, {usedAddr, 40}} {
			n := copy(r.at(part.addr, part.n), rings)
			rings = rings[n:]
		}
		var c Chain
		for range 10 {
			ok, err := r.Pop(&c)
			if err != nil || !ok {
				break
			}
			if len(c.Readable)+len(c.Writable) > int(r.Size()) || len(c.Readable)+len(c.Writable) == 0 {
				t.Fatal(fmt.Sprint(len(c.Readable), len(c.Writable)))
			}
			for _, p := range c.Writable {
				if len(p) == 0 {
					t.Fatal("empty")
				}
				p[0], p[len(p)-1] = 1, 1
			}
			r.Push(&c, 1)
			r.Notify()
			r.EnableKicks()
			r.DisableKicks()
		}
	})
}
