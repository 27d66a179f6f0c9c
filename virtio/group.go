package virtio

import (
	"context"
	"errors"
	"runtime"
	"sync"

	"vmm/virtio/virtqueue"
)

// Group is the goroutines of a device's Serve. One that fails ends the others: the device as a whole needs a reset then.
type Group struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	running sync.WaitGroup
}

// NewGroup makes a group that ends with ctx, which must have an end.
func NewGroup(ctx context.Context) *Group {
	g := &Group{}
	g.ctx, g.cancel = context.WithCancelCause(ctx)
	return g
}

// Serve has f serve q until f returns; a queue that is nil, since the driver has none, it leaves alone. F has a thread for
// itself, as what sleeps in read(2) is woken without a way through Go's scheduler, and q is woken when ctx ends.
func (g *Group) Serve(q *virtqueue.Queue, f func(ctx context.Context, q *virtqueue.Queue) error) {
	if q == nil {
		return
	}
	g.Go(func(ctx context.Context) error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer q.WakeWhenDone(ctx)()
		return f(ctx, q)
	})
}

// Go runs f, which must return soon after ctx ends.
func (g *Group) Go(f func(ctx context.Context) error) {
	g.running.Go(func() {
		if err := f(g.ctx); err != nil {
			g.cancel(err)
		}
	})
}

// Done is closed when the group shall end.
func (g *Group) Done() <-chan struct{} { return g.ctx.Done() }

// Wait waits until the group's context ends, or one of its goroutines fails, and until all have returned. It returns the
// first failure.
func (g *Group) Wait() error {
	<-g.ctx.Done()
	g.running.Wait()
	err := context.Cause(g.ctx)
	g.cancel(nil)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}
