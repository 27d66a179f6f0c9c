package user

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Forward is a port of the host's that leads to one of the guest's.
type Forward struct {
	HostIP    netip.Addr // the zero value is every address of the host
	HostPort  uint16     // zero for any that is free
	GuestPort uint16
	UDP       bool // else TCP
}

// ParseForward reads [[HOSTIP:][HOSTPORT]:]GUESTPORT[/tcp|/udp], as docker run's -p has it.
func ParseForward(s string) (f Forward, err error) {
	ports, protocol, given := strings.Cut(s, "/")
	if given && protocol != "tcp" && protocol != "udp" {
		return f, fmt.Errorf("protocol %q: not tcp or udp", protocol)
	}
	f.UDP = protocol == "udp"
	rest, guest, found := cutLast(ports, ":")
	if !found {
		guest, rest = ports, ""
	}
	if f.GuestPort, err = parsePort(guest); err != nil {
		return f, err
	}
	if !found {
		return f, nil
	}
	ip, hostPort, found := cutLast(rest, ":")
	if !found {
		ip, hostPort = "", rest
	}
	if hostPort != "" {
		if f.HostPort, err = parsePort(hostPort); err != nil {
			return f, err
		}
	}
	if ip == "" {
		if found || hostPort == "" {
			return f, errors.New("needs a port (use for example 8080:80, or 127.0.0.1:2222:22/tcp)")
		}
		return f, nil
	}
	if inner, is := strings.CutPrefix(ip, "["); is {
		ip = strings.TrimSuffix(inner, "]")
	}
	if f.HostIP, err = netip.ParseAddr(ip); err != nil {
		return f, fmt.Errorf("%q: not an address of the host's (use for example 127.0.0.1)", ip)
	}
	return f, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q: not a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

// String is the form that [ParseForward] reads.
func (f Forward) String() string {
	text := strconv.Itoa(int(f.GuestPort))
	if f.HostPort != 0 || f.HostIP.IsValid() {
		text = ":" + text
		if f.HostPort != 0 {
			text = strconv.Itoa(int(f.HostPort)) + text
		}
	}
	switch {
	case f.HostIP.Is4():
		text = f.HostIP.String() + ":" + text
	case f.HostIP.IsValid():
		text = "[" + f.HostIP.String() + "]:" + text
	}
	if f.UDP {
		text += "/udp"
	}
	return text
}
