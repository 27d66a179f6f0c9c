package machine

import (
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/internal/kvmtest"
	"vmm/kvm"
)

func TestDefaultRoutes(t *testing.T) {
	want := []kvm.GSIRoute{
		kvm.IRQChipRoute(0, kvm.PICMaster, 0), kvm.IRQChipRoute(0, kvm.IOAPIC, 2), // the PIT
		kvm.IRQChipRoute(1, kvm.PICMaster, 1), kvm.IRQChipRoute(1, kvm.IOAPIC, 1),
		kvm.IRQChipRoute(2, kvm.PICMaster, 2),
		kvm.IRQChipRoute(3, kvm.PICMaster, 3), kvm.IRQChipRoute(3, kvm.IOAPIC, 3),
		kvm.IRQChipRoute(4, kvm.PICMaster, 4), kvm.IRQChipRoute(4, kvm.IOAPIC, 4),
		kvm.IRQChipRoute(5, kvm.PICMaster, 5), kvm.IRQChipRoute(5, kvm.IOAPIC, 5),
		kvm.IRQChipRoute(6, kvm.PICMaster, 6), kvm.IRQChipRoute(6, kvm.IOAPIC, 6),
		kvm.IRQChipRoute(7, kvm.PICMaster, 7), kvm.IRQChipRoute(7, kvm.IOAPIC, 7),
		kvm.IRQChipRoute(8, kvm.PICSlave, 0), kvm.IRQChipRoute(8, kvm.IOAPIC, 8),
		kvm.IRQChipRoute(9, kvm.PICSlave, 1), kvm.IRQChipRoute(9, kvm.IOAPIC, 9),
		kvm.IRQChipRoute(10, kvm.PICSlave, 2), kvm.IRQChipRoute(10, kvm.IOAPIC, 10),
		kvm.IRQChipRoute(11, kvm.PICSlave, 3), kvm.IRQChipRoute(11, kvm.IOAPIC, 11),
		kvm.IRQChipRoute(12, kvm.PICSlave, 4), kvm.IRQChipRoute(12, kvm.IOAPIC, 12),
		kvm.IRQChipRoute(13, kvm.PICSlave, 5), kvm.IRQChipRoute(13, kvm.IOAPIC, 13),
		kvm.IRQChipRoute(14, kvm.PICSlave, 6), kvm.IRQChipRoute(14, kvm.IOAPIC, 14),
		kvm.IRQChipRoute(15, kvm.PICSlave, 7), kvm.IRQChipRoute(15, kvm.IOAPIC, 15),
		kvm.IRQChipRoute(16, kvm.IOAPIC, 16), kvm.IRQChipRoute(17, kvm.IOAPIC, 17),
		kvm.IRQChipRoute(18, kvm.IOAPIC, 18), kvm.IRQChipRoute(19, kvm.IOAPIC, 19),
		kvm.IRQChipRoute(20, kvm.IOAPIC, 20), kvm.IRQChipRoute(21, kvm.IOAPIC, 21),
		kvm.IRQChipRoute(22, kvm.IOAPIC, 22), kvm.IRQChipRoute(23, kvm.IOAPIC, 23),
	}
	require.Equal(t, want, defaultRoutes())
}

// A device that outlives the boards drives its line while they come and go. The VM that a line has led to can be closed
// as soon as connect has returned: an ioctl after it would meet a closed file, or another machine's.
func TestGSILineBetweenBoards(t *testing.T) {
	kvmtest.Require(t)
	sys, err := kvm.Open(kvm.DefaultPath)
	require.NoError(t, err)
	defer func() { require.NoError(t, sys.Close()) }()

	l := &gsiLine{gsi: gsiCOM1}
	require.NoError(t, l.SetLevel(true), "into the air")

	stop := make(chan struct{})
	var errs [2]error
	var devices sync.WaitGroup
	for i := range errs {
		devices.Go(func() {
			for high := false; errs[i] == nil; high = !high {
				select {
				case <-stop:
					return
				default:
					errs[i] = l.SetLevel(high)
				}
			}
		})
	}
	for range 20 {
		vm, err := sys.CreateVM()
		require.NoError(t, err)
		require.NoError(t, vm.CreateIRQChip())
		l.connect(vm)
		require.NoError(t, l.SetLevel(true))
		l.connect(nil)
		require.NoError(t, vm.Close())
	}
	close(stop)
	devices.Wait()
	require.Equal(t, -1, slices.IndexFunc(errs[:], func(err error) bool { return err != nil }), "%v", errs)
}
