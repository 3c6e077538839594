# A ~/.bashrc that talks, also where nobody listens.
echo "Welcome to $(hostname), today is a good day"
echo "{\"ok\": false, \"error\": \"noise on stdout\"}"
echo "module: loading gcc/12 cuda/12.4 ..." >&2
printf 'quota: 93%% of home used\n\n' >&2
echo "have a nice day"
