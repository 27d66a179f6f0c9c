package machine

import (
	"math/bits"
	"slices"

	"vmm/kvm"
)

// CPUID leaves (Intel SDM vol. 2A, CPUID; AMD64 APM vol. 3, appendix E; Linux Documentation/virt/kvm/x86/cpuid.rst).
const (
	leafMax           = 0x0
	leafFeatures      = 0x1
	leafIntelCache    = 0x4
	leafStructured    = 0x7
	leafTopology      = 0xb
	leafTopologyV2    = 0x1f
	leafExtFeatures   = 0x8000_0001
	leafAddressSizes  = 0x8000_0008
	leafAMDCache      = 0x8000_001d
	leafAMDTopology   = 0x8000_001e
	levelInvalid      = 0 << 8 // level types of the topology leaves, in ECX
	levelSMT          = 1 << 8
	levelCore         = 2 << 8
	minPhysicalBits   = 36 // what a CPU has that does not say
	featECXx2APIC     = 1 << 21
	featECXTSCDL      = 1 << 24
	featECXXSAVE      = 1 << 26
	featECXHypervisor = 1 << 31
	featEDXHTT        = 1 << 28
	extECXCmpLegacy   = 1 << 1
)

// physicalAddressBits returns the width of guest-physical addresses.
func physicalAddressBits(cpuid []kvm.CPUIDEntry) uint {
	for i := range cpuid {
		if cpuid[i].Function == leafAddressSizes {
			return max(uint(cpuid[i].EAX&0xff), minPhysicalBits)
		}
	}
	return minPhysicalBits
}

// guestCPUID returns what vCPU apicID of a guest with n vCPUs shall see: what the host's CPU and KVM offer (host, which
// is left as it is), with the topology put right. The guest has one package of n cores with a thread each, which share
// the last-level cache; the APIC IDs count the cores from zero.
func guestCPUID(host []kvm.CPUIDEntry, apicID, n int, tscDeadline bool) []kvm.CPUIDEntry {
	// Where a field wants a size that is a power of two, as the APIC IDs are split into bit fields.
	idBits := uint32(bits.Len(uint(n - 1)))
	id := uint32(apicID)

	// The topology leaves are written anew, in the place of what KVM copied from the core it happened to run on.
	out := slices.DeleteFunc(slices.Clone(host), func(e kvm.CPUIDEntry) bool {
		return e.Function == leafTopology || e.Function == leafTopologyV2
	})
	vendorAMD, hasTopologyV2 := false, false
	for i := range out {
		e := &out[i]
		switch e.Function {
		case leafMax:
			// "AuthenticAMD" and "HygonGenuine": only EBX tells them apart from Intel here.
			vendorAMD = e.EBX == 0x6874_7541 || e.EBX == 0x6f67_7948
			hasTopologyV2 = e.EAX >= leafTopologyV2
			e.EAX = max(e.EAX, leafTopology)
		case leafFeatures:
			// EBX: [31:24] the APIC ID, [23:16] the number of APIC IDs in the package.
			e.EBX = e.EBX&0xffff | id<<24 | (1<<idBits)<<16
			e.ECX |= featECXx2APIC | featECXHypervisor
			if tscDeadline {
				e.ECX |= featECXTSCDL
			}
			e.EDX &^= featEDXHTT
			if n > 1 {
				e.EDX |= featEDXHTT
			}
		case leafIntelCache, leafAMDCache:
			cacheType, level := e.EAX&0x1f, e.EAX>>5&7
			if cacheType == 0 {
				continue
			}
			// EAX: [25:14] APIC IDs that share this cache, less one; [31:26], with Intel, those of the package's cores.
			e.EAX &= 0x3fff
			if level >= 3 {
				e.EAX |= (1<<idBits - 1) << 14
			}
			if e.Function == leafIntelCache {
				e.EAX |= (1<<idBits - 1) << 26
			}
		case leafExtFeatures:
			e.ECX &^= extECXCmpLegacy
			if vendorAMD && n > 1 {
				e.ECX |= extECXCmpLegacy
			}
		case leafAddressSizes:
			if vendorAMD {
				// ECX: [15:12] how many bits of the APIC ID number the cores, [7:0] the number of threads, less one.
				e.ECX = e.ECX&^0xf0ff | idBits<<12 | uint32(n-1)
			}
		case leafAMDTopology:
			e.EAX = id
			e.EBX = e.EBX&^0xffff | id // a thread a core, and the core's number
			e.ECX &^= 0x7ff            // one node, number zero
		}
	}
	dropWithoutXSAVE(out)
	out = append(out, topologyLeaf(leafTopology, id, uint32(n), idBits)...)
	if hasTopologyV2 {
		out = append(out, topologyLeaf(leafTopologyV2, id, uint32(n), idBits)...)
	}
	return out
}

// needXSAVE are the features whose registers only XSAVE saves (SDM vol. 1, §13.1), by leaf, subleaf and EAX, EBX, ECX, EDX.
var needXSAVE = []struct {
	function, index uint32
	bits            [4]uint32
}{
	// FMA, AVX, F16C.
	{leafFeatures, 0, [4]uint32{2: 1<<12 | 1<<28 | 1<<29}},
	// AVX2, MPX, AVX-512 in all three; PKU, VAES, VPCLMULQDQ; AMX.
	{leafStructured, 0, [4]uint32{
		1: 1<<5 | 1<<14 | 1<<16 | 1<<17 | 1<<21 | 1<<26 | 1<<27 | 1<<28 | 1<<30 | 1<<31,
		2: 1<<1 | 1<<3 | 1<<6 | 1<<9 | 1<<10 | 1<<11 | 1<<12 | 1<<14,
		3: 1<<2 | 1<<3 | 1<<8 | 1<<22 | 1<<23 | 1<<24 | 1<<25,
	}},
	// AVX-VNNI, AVX512_BF16, AMX-FP16, AVX-IFMA; AVX-VNNI-INT8, AVX-NE-CONVERT, AVX-VNNI-INT16.
	{leafStructured, 1, [4]uint32{0: 1<<4 | 1<<5 | 1<<21 | 1<<23, 3: 1<<4 | 1<<5 | 1<<10}},
	// XOP, FMA4.
	{leafExtFeatures, 0, [4]uint32{2: 1<<11 | 1<<16}},
}

// dropWithoutXSAVE takes away what a guest could not use on a host without XSAVE, as no CPU has the one without the other:
// KVM reports both as the CPU has them, and Linux believes that AVX can be used.
func dropWithoutXSAVE(cpuid []kvm.CPUIDEntry) {
	if slices.ContainsFunc(cpuid, func(e kvm.CPUIDEntry) bool { return e.Function == leafFeatures && e.ECX&featECXXSAVE != 0 }) {
		return
	}
	for i := range cpuid {
		e := &cpuid[i]
		for _, f := range needXSAVE {
			if e.Function == f.function && e.Index == f.index {
				e.EAX, e.EBX, e.ECX, e.EDX = e.EAX&^f.bits[0], e.EBX&^f.bits[1], e.ECX&^f.bits[2], e.EDX&^f.bits[3]
			}
		}
	}
}

// topologyLeaf is the extended topology enumeration: the threads of a core (one), the cores of the package, the end.
// EAX is how far to shift an x2APIC ID to get at the next level, EBX the number of threads at this level.
func topologyLeaf(leaf, id, n, idBits uint32) []kvm.CPUIDEntry {
	sub := func(index, eax, ebx, level uint32) kvm.CPUIDEntry {
		return kvm.CPUIDEntry{
			Function: leaf, Index: index, Flags: kvm.CPUIDSignificantIndex,
			EAX: eax, EBX: ebx, ECX: level | index, EDX: id,
		}
	}
	return []kvm.CPUIDEntry{sub(0, 0, 1, levelSMT), sub(1, idBits, n, levelCore), sub(2, 0, 0, levelInvalid)}
}
