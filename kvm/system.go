// Package kvm is the interface of Linux's KVM: its ioctls as methods on [System], [VM] and [VCPU], with the kernel's
// structures as Go values. It holds no policy: what to map, route or answer is the caller's business.
//
// The source of it all is Linux Documentation/virt/kvm/api.rst, where each request has a section by the name that the
// comments give in capitals, and include/uapi/linux/kvm.h, whose names the identifiers follow.
//
// Each request is issued again when a signal interrupts it, except KVM_RUN: that is how a vCPU is made to stop, see
// [VCPU.Run]. All methods may be called by any goroutine unless they say otherwise; none may run at the time of, or
// after, the Close of its receiver.
package kvm

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DefaultPath is where Linux has the KVM device.
const DefaultPath = "/dev/kvm"

// APIVersion is the only version of the stable API; a kernel with another is not to be used (KVM_GET_API_VERSION).
const APIVersion = 12

// VersionError reports a kernel whose KVM has an API that this package does not speak.
type VersionError struct{ Version int }

func (e *VersionError) Error() string {
	return fmt.Sprintf("kvm api version %d, want %d", e.Version, APIVersion)
}

// System is an open KVM device.
type System struct {
	fd       int
	mmapSize int // of the structure that a vCPU shares with the kernel
}

// Open opens the KVM device at path. The error matches [io/fs.ErrNotExist] or [io/fs.ErrPermission] where that is the
// reason, and is a [*VersionError] where the API is of another version.
func Open(path string) (*System, error) {
	fd, err := openRetry(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	s := &System{fd: fd}
	version, err := ioctl(fd, kvmGetAPIVersion, 0)
	switch {
	case err != nil:
		err = fmt.Errorf("get kvm api version: %w", err)
	case version != APIVersion:
		err = &VersionError{Version: version}
	default:
		s.mmapSize, err = ioctl(fd, kvmGetVCPUMmapSize, 0)
		if err == nil && s.mmapSize < int(unsafe.Sizeof(runPage{})) {
			err = unix.EINVAL
		}
		if err != nil {
			err = fmt.Errorf("get vcpu mmap size: %w", err)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), s.Close())
	}
	return s, nil
}

func openRetry(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// Close closes the device. VMs made from it live on. It is idempotent.
func (s *System) Close() error { return closeFD(&s.fd, "kvm device") }

// closeFD closes what is not closed yet, and marks it so. A number is never closed twice: it could be another file's
// by then.
func closeFD(fd *int, what string) error {
	if *fd < 0 {
		return nil
	}
	n := *fd
	*fd = -1
	// Linux frees the number also where close reports EINTR.
	if err := unix.Close(n); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("close %s: %w", what, err)
	}
	return nil
}

// Extension returns the value of a capability, 0 where KVM lacks it (KVM_CHECK_EXTENSION). Some have a value beyond 1,
// which the constant's comment names. A capability may depend on the VM: see [VM.Extension].
func (s *System) Extension(c Cap) (int, error) { return checkExtension(s.fd, c) }

func checkExtension(fd int, c Cap) (int, error) {
	n, err := ioctl(fd, kvmCheckExtension, uintptr(c))
	if err != nil {
		return 0, fmt.Errorf("check extension %v: %w", c, err)
	}
	return n, nil
}

// VCPUMmapSize returns the size in bytes of the structure that each vCPU shares with the kernel
// (KVM_GET_VCPU_MMAP_SIZE).
func (s *System) VCPUMmapSize() int { return s.mmapSize }

// SupportedCPUID returns the CPUID leaves that host and KVM support in a default VM (KVM_GET_SUPPORTED_CPUID).
func (s *System) SupportedCPUID() ([]CPUIDEntry, error) {
	const atFirst, tooMany = 128, 1 << 14 // KVM of today has at most 256
	for n := atFirst; ; n *= 2 {
		l := makeList[CPUIDEntry](n)
		_, err := ioctlPtr(s.fd, kvmGetSupportedCPUID, l.pointer())
		if err == nil {
			return l.entries(), nil
		}
		if !errors.Is(err, unix.E2BIG) || n >= tooMany {
			return nil, fmt.Errorf("get supported cpuid: %w", err)
		}
	}
}

// MSRIndexList returns the MSRs that [VCPU.GetMSRs] and [VCPU.SetMSRs] know (KVM_GET_MSR_INDEX_LIST).
func (s *System) MSRIndexList() ([]uint32, error) {
	return s.msrList(kvmGetMSRIndexList, "get msr index list")
}

// MSRFeatureIndexList returns the MSRs that tell features of the host (KVM_GET_MSR_FEATURE_INDEX_LIST).
func (s *System) MSRFeatureIndexList() ([]uint32, error) {
	return s.msrList(kvmGetMSRFeatureIndexList, "get msr feature index list")
}

// msrList gets a kvm_msr_list: a count, and as many indices. A list too short for it makes the kernel fail with E2BIG
// and write the count that it wants.
func (s *System) msrList(request uintptr, what string) ([]uint32, error) {
	const tooMany = 1 << 16
	l := make([]uint32, 1)
	for {
		_, err := ioctlPtr(s.fd, request, unsafe.Pointer(&l[0]))
		if err == nil {
			return l[1 : 1+l[0]], nil
		}
		if !errors.Is(err, unix.E2BIG) || l[0] > tooMany || int(l[0]) < len(l) {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		l = append(make([]uint32, 0, 1+l[0]), l...)[:1+l[0]]
	}
}

// CreateVM makes a VM without memory, vCPUs or interrupt controllers (KVM_CREATE_VM).
func (s *System) CreateVM() (*VM, error) {
	fd, err := ioctl(s.fd, kvmCreateVM, 0)
	if err != nil {
		return nil, fmt.Errorf("create vm: %w", err)
	}
	return &VM{fd: fd, mmapSize: s.mmapSize}, nil
}
