package machine

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/kvm"
)

const (
	vendorIntel = 0x756e_6547
	vendorAMD   = 0x6874_7541
)

// hostCPUID is a host of eight threads, as KVM reports one: with traces of the core that the question ran on.
func hostCPUID(vendor, maxLeaf uint32) []kvm.CPUIDEntry {
	return []kvm.CPUIDEntry{
		{Function: 0x0, EAX: maxLeaf, EBX: vendor},
		{Function: 0x1, EAX: 0xa0f12, EBX: 0x0508_0800, ECX: 0x1, EDX: featEDXHTT | 1},
		{Function: 0x4, Index: 0, Flags: kvm.CPUIDSignificantIndex, EAX: 0x1c00_4121}, // L1 data
		{Function: 0x4, Index: 3, Flags: kvm.CPUIDSignificantIndex, EAX: 0x1c03_c163}, // L3
		{Function: 0x4, Index: 4, Flags: kvm.CPUIDSignificantIndex},
		{Function: 0xb, Index: 0, Flags: kvm.CPUIDSignificantIndex, EAX: 1, EBX: 2, ECX: 0x100, EDX: 5},
		{Function: 0xb, Index: 1, Flags: kvm.CPUIDSignificantIndex, EAX: 3, EBX: 8, ECX: 0x201, EDX: 5},
		{Function: 0x8000_0001, ECX: extECXCmpLegacy | 1<<22},
		{Function: 0x8000_0008, EAX: 0x3030, ECX: 0x4007},
		{Function: 0x8000_001d, Index: 3, Flags: kvm.CPUIDSignificantIndex, EAX: 0x1c163},
		{Function: 0x8000_001e, EAX: 5, EBX: 0x102, ECX: 0x101},
	}
}

func leaf(t *testing.T, entries []kvm.CPUIDEntry, function, index uint32) kvm.CPUIDEntry {
	t.Helper()
	var found []kvm.CPUIDEntry
	for _, e := range entries {
		if e.Function == function && e.Index == index {
			found = append(found, e)
		}
	}
	require.Len(t, found, 1, "leaf %#x.%d", function, index)
	return found[0]
}

func TestGuestCPUIDTopology(t *testing.T) {
	host := hostCPUID(vendorAMD, 0x10)
	before := append([]kvm.CPUIDEntry(nil), host...)
	got := guestCPUID(host, 5, 6, true)
	require.Equal(t, before, host, "the host's leaves are shared by all vCPUs")

	one := leaf(t, got, leafFeatures, 0)
	require.Equal(t, uint32(5), one.EBX>>24, "initial APIC ID")
	require.Equal(t, uint32(8), one.EBX>>16&0xff, "APIC IDs of the package, rounded up")
	require.NotZero(t, one.EDX&featEDXHTT)
	require.NotZero(t, one.ECX&featECXHypervisor)
	require.NotZero(t, one.ECX&featECXx2APIC)
	require.NotZero(t, one.ECX&featECXTSCDL)

	require.Equal(t, kvm.CPUIDEntry{Function: 0xb, Flags: kvm.CPUIDSignificantIndex, EBX: 1, ECX: 0x100, EDX: 5}, leaf(t, got, 0xb, 0))
	require.Equal(t, kvm.CPUIDEntry{Function: 0xb, Index: 1, Flags: kvm.CPUIDSignificantIndex, EAX: 3, EBX: 6, ECX: 0x201, EDX: 5}, leaf(t, got, 0xb, 1))
	require.Equal(t, kvm.CPUIDEntry{Function: 0xb, Index: 2, Flags: kvm.CPUIDSignificantIndex, ECX: 2, EDX: 5}, leaf(t, got, 0xb, 2))

	require.NotZero(t, leaf(t, got, leafExtFeatures, 0).ECX&extECXCmpLegacy)
	require.Equal(t, uint32(0x3005), leaf(t, got, leafAddressSizes, 0).ECX, "3 bits of APIC ID, 6 cores")
	require.Equal(t, uint32(5), leaf(t, got, leafAMDTopology, 0).EAX)
	require.Equal(t, uint32(5), leaf(t, got, leafAMDTopology, 0).EBX, "one thread a core")
	require.Zero(t, leaf(t, got, leafAMDTopology, 0).ECX, "one node")
	require.Equal(t, uint32(7), leaf(t, got, leafAMDCache, 3).EAX>>14&0xfff, "all cores share the last-level cache")

	l1 := leaf(t, got, leafIntelCache, 0)
	require.Zero(t, l1.EAX>>14&0xfff, "nobody shares a first-level cache")
	require.Equal(t, uint32(7), l1.EAX>>26)
	require.Zero(t, leaf(t, got, leafIntelCache, 4).EAX, "the end of the list stays one")
}

func TestGuestCPUIDSingle(t *testing.T) {
	got := guestCPUID(hostCPUID(vendorIntel, 0x20), 0, 1, false)
	one := leaf(t, got, leafFeatures, 0)
	require.Equal(t, uint32(1), one.EBX>>16&0xff)
	require.Zero(t, one.EDX&featEDXHTT)
	require.Zero(t, one.ECX&featECXTSCDL)
	require.Zero(t, leaf(t, got, leafExtFeatures, 0).ECX&extECXCmpLegacy)
	require.Equal(t, uint32(0x4007), leaf(t, got, leafAddressSizes, 0).ECX, "reserved on Intel: as it was")
	require.Zero(t, leaf(t, got, leafTopology, 1).EAX)
	require.Equal(t, uint32(1), leaf(t, got, leafTopologyV2, 1).EBX, "where the host has the newer leaf, the guest does")
}

func TestGuestCPUIDRaisesTheHighestLeaf(t *testing.T) {
	got := guestCPUID(hostCPUID(vendorAMD, 0x7), 0, 2, false)
	require.Equal(t, uint32(leafTopology), leaf(t, got, leafMax, 0).EAX)
}

func TestPhysicalAddressBits(t *testing.T) {
	require.Equal(t, uint(48), physicalAddressBits(hostCPUID(vendorAMD, 0x10)))
	require.Equal(t, uint(36), physicalAddressBits(nil))
}

// TestGuestCPUIDWithoutXSAVE: AVX and its like go where XSAVE is missing, and stay where it is there.
func TestGuestCPUIDWithoutXSAVE(t *testing.T) {
	all := uint32(0xffff_ffff)
	host := append(hostCPUID(vendorIntel, 0x10),
		kvm.CPUIDEntry{Function: 7, Flags: kvm.CPUIDSignificantIndex, EAX: 1, EBX: all, ECX: all, EDX: all},
		kvm.CPUIDEntry{Function: 7, Index: 1, Flags: kvm.CPUIDSignificantIndex, EAX: all, EDX: all})
	for _, xsave := range []bool{false, true} {
		for i := range host {
			if host[i].Function == leafFeatures {
				if host[i].ECX = all; !xsave {
					host[i].ECX &^= featECXXSAVE
				}
			}
		}
		got := guestCPUID(host, 0, 1, true)
		const avx, aes, sse42, avx2, smep, pku = 1 << 28, 1 << 25, 1 << 20, 1 << 5, 1 << 7, 1 << 3
		one, seven := leaf(t, got, leafFeatures, 0), leaf(t, got, leafStructured, 0)
		require.Equal(t, xsave, one.ECX&avx != 0)
		require.Equal(t, xsave, seven.EBX&avx2 != 0)
		require.Equal(t, xsave, seven.ECX&pku != 0)
		require.Equal(t, xsave, leaf(t, got, leafStructured, 1).EAX == all)
		require.Equal(t, uint32(aes|sse42), one.ECX&(aes|sse42), "these need no XSAVE")
		require.NotZero(t, seven.EBX&smep)
		require.EqualValues(t, 1, seven.EAX, "the number of subleaves")
	}
}
