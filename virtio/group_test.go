package virtio_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/internal/leak"
	"vmm/virtio"
)

func TestMain(m *testing.M) { leak.Main(m) }

func TestGroup(t *testing.T) {
	broken := errors.New("broken")
	until := func(ctx context.Context) error { <-ctx.Done(); return nil }
	t.Run("ends with its context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		g := virtio.NewGroup(ctx)
		g.Serve(nil, nil)
		g.Go(until)
		g.Go(func(context.Context) error { return nil }) // one that has nothing to do ends nothing
		cancel()
		<-g.Done()
		require.NoError(t, g.Wait())
	})
	t.Run("ends with a failure", func(t *testing.T) {
		g := virtio.NewGroup(t.Context())
		g.Go(until)
		g.Go(func(context.Context) error { return broken })
		require.ErrorIs(t, g.Wait(), broken)
	})
}

func TestNames(t *testing.T) {
	for id, want := range map[virtio.DeviceID]string{
		virtio.Net: "net", virtio.Block: "blk", virtio.Console: "console", virtio.Entropy: "rng", virtio.Balloon: "balloon",
		virtio.Vsock: "vsock", 99: "device 99",
	} {
		require.Equal(t, want, id.String())
	}
	require.True(t, virtio.Features(6).Has(2))
	require.False(t, virtio.Features(6).Has(3))
}
