package user

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

const resolvConf = "/etc/resolv.conf"

// resolvers are the host's name servers, which may change while a guest runs.
type resolvers struct {
	path string

	mu      sync.Mutex // guards what follows
	changed time.Time  // of the file
	list    []netip.AddrPort
	domains []string
}

func newResolvers(path string) *resolvers { return &resolvers{path: path} }

// read reads the file again if it has changed; mu is held.
func (r *resolvers) read() {
	st, err := os.Stat(r.path)
	if err == nil && st.ModTime().Equal(r.changed) && r.list != nil {
		return
	}
	text, err := os.ReadFile(r.path)
	if err == nil {
		r.changed = st.ModTime()
	}
	r.list, r.domains = parseResolvConf(string(text))
}

// servers are at least one.
func (r *resolvers) servers() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.read()
	return r.list
}

// search is the domains in which short names are looked for.
func (r *resolvers) search() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.read()
	return r.domains
}

// maxServers and maxDomains are glibc's limits (resolv.conf(5)); without a server it asks the host itself.
const (
	maxServers = 3
	maxDomains = 6
)

func parseResolvConf(text string) (servers []netip.AddrPort, domains []string) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(words[1]); err == nil && len(servers) < maxServers {
				servers = append(servers, netip.AddrPortFrom(a, 53))
			}
		case "search", "domain":
			domains = words[1:min(len(words), maxDomains+1)]
			if domains[0] == "." {
				domains = nil
			}
		}
	}
	if servers == nil {
		servers = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53)}
	}
	return servers, domains
}

// resolve takes questions of one of the guest's sockets to the host's name servers, and the answers back. A question that
// comes while the one before has no answer goes to the next server too.
func (n *Network) resolve(ep tcpip.Endpoint, wq *waiter.Queue) {
	ctx, end := context.WithCancel(n.ctx)
	defer end()
	watch := time.AfterFunc(dnsIdle, end)
	defer watch.Stop()

	var mu sync.Mutex // guards what follows
	answered := true
	at := 0
	var work sync.WaitGroup
	defer work.Wait()
	defer end()
	sockets := map[netip.AddrPort]*net.UDPConn{}
	defer func() {
		for _, s := range sockets {
			_ = s.Close()
		}
	}()
	ask := func(question []byte) {
		servers := n.dns.servers()
		mu.Lock()
		if !answered {
			at++
		}
		answered = false
		server := servers[at%len(servers)]
		mu.Unlock()
		there := sockets[server]
		if there == nil {
			var err error
			if there, err = connectedSocket(server); err != nil {
				return
			}
			sockets[server] = there
			work.Go(func() {
				for {
					err := readDatagram(there, func(p []byte) {
						mu.Lock()
						answered = true
						mu.Unlock()
						_, _ = ep.Write(bytes.NewReader(p), tcpip.WriteOptions{})
						watch.Reset(dnsIdle)
					})
					if err != nil && !passing(err) {
						return
					}
				}
			})
		}
		_, _ = there.Write(question)
	}
	for readGuest(ctx, ep, wq, ask) {
		watch.Reset(dnsIdle)
	}
}
