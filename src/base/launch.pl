#!/usr/bin/perl
# Starts one QEMU, or one process that exports a drive, inside the network namespace that it is run in: opens the VM's taps and
# listening sockets with our privileges, writes down who it is, then gives the privileges up and becomes that program. Perl,
# because Debian always has it (perl-base) and because the program must inherit descriptors that Node cannot make.
#
#   launch.pl --pid-file F [--tap NAME:FD]... [--socket-owner UID:GID] [--listen PATH:FD]... -- COMMAND...
use strict;
use warnings;
use Fcntl qw(O_RDWR O_WRONLY O_CREAT O_EXCL);
use POSIX ();
use Socket qw(AF_UNIX SOCK_STREAM pack_sockaddr_un);

use constant { TUNSETIFF => 0x400454ca, IFF_TAP => 0x0002, IFF_NO_PI => 0x1000, IFF_VNET_HDR => 0x4000 };

$^F = 1023;    # Descriptors are inherited across exec.
umask 0077;

my @keep;
my $pid_file;
my @socket_owner;
while (@ARGV) {
    my $option = shift @ARGV;
    last if $option eq '--';
    my $value = shift @ARGV;
    die "launch: $option needs a value\n" unless defined $value;
    if    ( $option eq '--pid-file' ) { $pid_file = $value }
    elsif ( $option eq '--tap' )      { open_tap( split_target($value) ) }
    elsif ( $option eq '--socket-owner' ) { @socket_owner = split_owner($value) }
    elsif ( $option eq '--listen' )   { listen_on( split_target($value) ) }
    else                              { die "launch: unknown option $option\n" }
}
die "launch: no command\n" unless @ARGV;
write_pid($pid_file) if defined $pid_file;
exec { $ARGV[0] } @ARGV or die "launch: cannot run $ARGV[0]: $!\n";

sub split_target {
    my ($value) = @_;
    $value =~ /^(.+):(\d+)$/ or die "launch: '$value' is not TARGET:FD\n";
    return ( $1, $2 );
}

sub split_owner {
    my ($value) = @_;
    $value =~ /^(\d+):(\d+)$/ or die "launch: '$value' is not UID:GID\n";
    return ( $1, $2 );
}

sub open_tap {
    my ( $name, $fd ) = @_;
    sysopen( my $tun, '/dev/net/tun', O_RDWR ) or die "launch: cannot open /dev/net/tun: $!\n";
    my $request = pack( 'a16 S x22', $name, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR );
    ioctl( $tun, TUNSETIFF, $request ) or die "launch: cannot open the tap $name: $!\n";
    move( $tun, $fd );
}

sub listen_on {
    my ( $path, $fd ) = @_;
    unlink $path, "$path~";
    socket( my $socket, AF_UNIX, SOCK_STREAM, 0 ) or die "launch: cannot make a socket: $!\n";
    # The name appears when somebody listens: who finds it may connect.
    bind( $socket, pack_sockaddr_un("$path~") ) or die "launch: cannot bind $path: $!\n";
    # The folder is ours alone to write: nobody can have put another file there.
    if (@socket_owner) { chown @socket_owner, "$path~" or die "launch: cannot give $path away: $!\n" }
    listen( $socket, 1 ) or die "launch: cannot listen on $path: $!\n";
    rename( "$path~", $path ) or die "launch: cannot name $path: $!\n";
    move( $socket, $fd );
}

sub move {
    my ( $handle, $fd ) = @_;
    die "launch: descriptor $fd is taken\n" if fileno($handle) == $fd || -e "/proc/self/fd/$fd";
    POSIX::dup2( fileno($handle), $fd ) // die "launch: cannot move a descriptor to $fd: $!\n";
    close $handle;
}

# Pid and start time (field 22 of /proc/PID/stat; the name in field 2 may contain anything) stay the same across exec.
sub write_pid {
    my ($path) = @_;
    open( my $stat, '<', '/proc/self/stat' ) or die "launch: cannot read /proc/self/stat: $!\n";
    my $line = <$stat>;
    close $stat;
    my ($rest) = $line =~ /\) (.*)$/s or die "launch: cannot understand /proc/self/stat\n";
    my $start = ( split ' ', $rest )[19];
    unlink "$path.new";
    sysopen( my $out, "$path.new", O_WRONLY | O_CREAT | O_EXCL, 0600 ) or die "launch: cannot write $path: $!\n";
    print {$out} "$$ $start\n" or die "launch: cannot write $path: $!\n";
    close $out or die "launch: cannot write $path: $!\n";
    rename "$path.new", $path or die "launch: cannot write $path: $!\n";
}
