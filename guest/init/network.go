package main

import (
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/container/wire"
)

// card is the only network card.
const card = "eth0"

// setUpNetwork gives the card its address, and makes what containers may expect of a network.
func setUpNetwork(s *wire.Setup) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	defer unix.Close(fd)
	if err := up(fd, "lo"); err != nil {
		return err
	}
	// As in Docker: whoever runs in there may have any port, and ping.
	sysctl("net/ipv4/ip_unprivileged_port_start", "0")
	sysctl("net/ipv4/ping_group_range", "0 2147483647")
	if s.Address == "" {
		return nil
	}
	prefix, err := netip.ParsePrefix(s.Address)
	if err != nil {
		return err
	}
	gateway, err := netip.ParseAddr(s.Gateway)
	if err != nil {
		return err
	}
	mask := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	if p, err := mask.Prefix(prefix.Bits()); err == nil {
		mask = p.Addr()
	}
	for _, set := range []struct {
		request uint
		address netip.Addr
	}{{unix.SIOCSIFADDR, prefix.Addr()}, {unix.SIOCSIFNETMASK, mask}} {
		req, err := unix.NewIfreq(card)
		if err != nil {
			return err
		}
		if err := req.SetInet4Addr(set.address.AsSlice()); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, set.request, req); err != nil {
			return fmt.Errorf("address %v of %s: %w", set.address, card, err)
		}
	}
	if err := up(fd, card); err != nil {
		return err
	}
	return defaultRoute(fd, gateway)
}

func up(fd int, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return fmt.Errorf("flags of %s: %w", name, err)
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("%s up: %w", name, err)
	}
	return nil
}

// rtentry is struct rtentry (Linux include/uapi/linux/route.h), as SIOCADDRT has it.
type rtentry struct {
	pad1                  uint64
	dst, gateway, genmask unix.RawSockaddrInet4
	flags                 uint16
	pad2                  int16
	pad3                  uint64
	pad4                  uint64
	metric                int16
	_                     [6]byte
	dev                   uintptr
	mtu, window           uint64
	irtt                  uint16
	_                     [6]byte
}

func defaultRoute(fd int, gateway netip.Addr) error {
	anywhere := unix.RawSockaddrInet4{Family: unix.AF_INET}
	r := rtentry{dst: anywhere, genmask: anywhere, gateway: unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: gateway.As4()}, flags: unix.RTF_UP | unix.RTF_GATEWAY}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return fmt.Errorf("default route by %v: %w", gateway, errno)
	}
	return nil
}
