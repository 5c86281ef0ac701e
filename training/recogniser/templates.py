"""Sentences written by rule: what children and learners say in class, and what they ask about physics.

The patterns are the authors' own. Nouns, verbs and names vary freely, so that the recogniser hears common words in many
neighbourhoods rather than a few sentences often.
"""

import random
import re
from collections.abc import Iterator, Sequence

_LISTS: dict[str, str] = {
    "who": "i you he she it we they someone everyone nobody",
    "person": "teacher,student,doctor,mother,father,brother,sister,friend,boy,girl,man,woman,baby,driver,nurse,farmer,uncle,"
              "aunt,cousin,grandmother,grandfather,boss,neighbour,child,king,queen,president,worker,player,son,daughter",
    "thing": "book,pen,bag,chair,table,door,window,ball,box,car,bus,bike,boat,plane,train,phone,computer,clock,watch,hat,coat,"
             "shirt,skirt,dress,shoe,sweater,jacket,key,knife,fork,spoon,cup,glass,plate,bottle,lamp,bed,desk,picture,letter,"
             "newspaper,map,toy,kite,doll,gift,ticket,umbrella,ring,mirror,camera,television,radio,card,stamp,rope,basket,cap",
    "food": "cake,bread,milk,rice,egg,apple,banana,orange,pear,grape,peach,biscuit,sandwich,noodles,soup,meat,fish,chicken,"
            "beef,steak,salad,tomato,potato,carrot,tea,coffee,juice,water,chocolate,ice cream,candy,cheese,butter,sugar,salt,"
            "dumplings,hamburger,cookie,lemon,mango,melon,strawberry,lunch,dinner,breakfast",
    "animal": "cat,dog,bird,horse,cow,pig,sheep,duck,hen,goose,rabbit,mouse,lion,tiger,bear,monkey,elephant,panda,fox,wolf,"
              "snake,frog,fish,bee,ant,butterfly,parrot,camel,deer,giraffe,kangaroo,turtle,whale,zebra",
    "place": "school,park,zoo,home,house,shop,market,bank,hospital,station,airport,library,office,city,village,river,lake,sea,"
             "beach,mountain,forest,farm,garden,kitchen,bathroom,bedroom,classroom,street,cinema,museum,hotel,restaurant,"
             "factory,field,island,bridge,church,playground,gym,post office,supermarket,country,world",
    "town": "new york,london,paris,beijing,shanghai,china,america,england,france,japan,canada,australia,africa,india,rome,"
            "germany,hong kong,tokyo,boston,washington,chicago,texas,europe,asia",
    "adj": "big,small,tall,short,long,old,new,young,good,bad,nice,happy,sad,angry,tired,hungry,thirsty,hot,cold,warm,cool,fast,"
           "slow,easy,hard,difficult,heavy,light,dark,bright,clean,dirty,rich,poor,strong,weak,thin,fat,beautiful,ugly,kind,"
           "clever,stupid,busy,free,ready,sick,afraid,interesting,boring,important,expensive,cheap,delicious,dangerous,safe,"
           "quiet,noisy,full,empty,wet,dry,shiny,soft,sweet,sour,lazy,lucky,polite,proud,wrong,right,strange,different,evil",
    "colour": "red,blue,green,yellow,black,white,brown,pink,purple,orange,grey,golden",
    "do": "eat,drink,read,write,sing,dance,run,walk,swim,jump,fly,play,work,study,sleep,talk,speak,listen,look,watch,see,hear,"
          "buy,sell,make,take,give,get,go,come,leave,stay,wait,help,find,lose,bring,carry,cook,clean,wash,open,close,draw,"
          "drive,ride,teach,learn,know,think,believe,remember,forget,understand,ask,answer,tell,call,show,try,use,want,need,"
          "like,love,hate,hope,wish,win,fight,break,build,catch,throw,push,pull,cut,hold,turn,stop,start,begin,finish,change",
    "doing": "eating,drinking,reading,writing,singing,dancing,running,walking,swimming,jumping,flying,playing,working,studying,"
             "sleeping,talking,speaking,listening,looking,watching,buying,making,going,coming,waiting,helping,cooking,cleaning,"
             "washing,drawing,driving,riding,teaching,learning,thinking,crying,laughing,smiling,standing,sitting,lying,biking",
    "did": "ate,drank,read,wrote,sang,ran,walked,swam,jumped,played,worked,studied,slept,talked,said,saw,heard,bought,sold,"
           "made,took,gave,got,went,came,left,stayed,waited,helped,found,lost,brought,carried,cooked,cleaned,washed,opened,"
           "closed,drew,drove,taught,learned,knew,thought,forgot,asked,answered,told,called,tried,used,wanted,needed,liked,"
           "loved,won,broke,built,caught,threw,cut,held,stopped,started,finished,fixed,felt,fell,kept,met,sat,stood,looked",
    "when": "today,tomorrow,yesterday,now,tonight,this morning,this afternoon,this evening,last night,last week,next week,"
            "every day,on monday,on tuesday,on wednesday,on thursday,on friday,on saturday,on sunday,at night,at noon,soon,"
            "again,at once,in the morning,in the evening,in summer,in winter,in spring,in autumn,last year,next year,already",
    "my": "my your his her its our their",
    "det": "the,a,this,that,my,your,his,her,our,their,one,another,some,any,every,no",
    "be": "is was",
    "can": "can could will would should must may might shall",
    "how": "very,so,too,really,quite,always,never,often,sometimes,usually,only,just,still,almost",
    "number": "one two three four five six seven eight nine ten eleven twelve twenty thirty fifty hundred",
    "prep": "in,on,at,to,from,with,for,near,under,behind,before,after,about,over,by,into,without,between,across,around",
    "sport": "basketball,football,tennis,baseball,volleyball,table tennis,chess,the piano,the guitar,the violin,games,cards",
    "body": "head hand foot eye ear nose mouth face arm leg finger hair tooth heart back neck knee shoulder",
    "subject": "maths,english,chinese,physics,chemistry,biology,history,geography,music,art,science,sport",
    "family": "family,class,team,group,company,house,room",
}  # fmt: skip

_EVERYDAY = """
does {name} like the {food}|do you like {food}|does {who} want the {thing}|where is {my} {thing}|where are {my} {thing}s
is there any {food}|are there any {animal}s in the {place}|there is a {adj} {animal} in the {place}|what is in the {thing}
{name} likes {my} {colour} {thing}|{my} {thing} is {colour}|what colour is {my} {thing}|i have a {adj} {thing}|has {who} got a {thing}
how many {thing}s are there|how many {animal}s can you see|how much is the {thing}|how much {food} do you need|how old is {my} {person}
what is {my} {person} {doing}|{who} can {do} {how} well|can you {do} it|can i {do} the {thing}|shall we {do} now|let us {do} {when}
{name} went to the {place} with {my} {person}|i am {doing} in the {place}|{my} {person} is {doing} {when}|we call it {animal}
he is {how} {adj}|she looks {adj}|it is {how} {adj} {when}|the {thing} is {adj}er than the {thing}|this is the most {adj} {thing}
what do you think of {town}|i want to go to {town} {when}|have you been to {town}|{town} is a {adj} city|i come from {town}
{who} {did} the {thing} {prep} the {place}|{name} {did} {my} {thing} {when}|the {person} {did} it {prep} {my} {thing}
why did {who} {do} {when}|when are you going to {do}|when will {who} be back|who {did} the {thing}|whose {thing} is this
what are you {doing}|what is {my} name|my name is {name}|this is {my} {person} {name}|are you coming to {place}|let me {do}
please {do} the {thing}|do not {do} in the {place}|you {can} {do} the {thing}|{who} {can} not {do} it {when}|i would like some {food}
tell them to {do} me|you must do your best|i am {how} glad to see you|thank you for {my} {thing}|{my} {body} hurts|wash {my} {body}s
i get up at {number} o'clock|it is half past {number}|he plays {sport} {how} well|can you play {sport}|we play {sport} {when}
{my} favourite {family} is {adj}|my favourite subject is {subject}|i am good at {subject}|there are {number} {person}s in {my} {family}
he was not {adj} but he {did} it|it was {adj} and the {thing} was {adj}|she {did} and {did} the {thing}|i think {who} {did} it
what {be} the {thing} like|what {be} {who} going to {do}|how {can} {who} {do} that|how do you {do} {det} {thing}|how is {name} {when}
if you {do} you {can} {do}|because {who} {did} the {thing}|when {who} {did} the {adj} {thing}|after that {who} {did} it
i do not {do} what to {do}|nobody {did} {det} {thing}|everyone {did} {when}|{det} {adj} {person} {did} {det} {thing}|all of it {did}
{name} and {name} are {doing}|{name} is {adj}er than {name}|{name} {did} that the {thing} was {adj}|ask {name} to {do} the {thing}
{number} {animal}s|a {adj} {thing}|the {colour} {thing}|{adj} {food}|{do} the {thing}|{prep} the {place}|{who} {did}|{name}
she had {did} too much {prep} {town}|they have lost {my} {thing}s|you have to {do} the {person} of the {place}|i am afraid of {animal}s
once again he {did} it would {do}|that is why {who} {did}|so as soon as that {did}|i {did} nothing {prep} it|it came to me
could you speak more slowly|i beg your pardon|what does this word mean|how do you spell {thing}|can you say that again please
i do not understand the question|may i ask a question|may i go to the bathroom|excuse me sir|good morning teacher|see you later
"""

_PHYSICS_THINGS = (
    "force,mass,weight,speed,velocity,acceleration,distance,displacement,energy,kinetic energy,potential energy,power,work,"
    "momentum,impulse,friction,gravity,pressure,density,volume,temperature,heat,current,voltage,resistance,charge,wave,"
    "wavelength,frequency,amplitude,period,light,sound,reflection,refraction,lens,mirror,magnet,magnetic field,electric field,"
    "circuit,battery,spring,pendulum,lever,pulley,inclined plane,torque,moment of force,centre of mass,free fall,projectile,"
    "circular motion,centripetal force,angular speed,orbit,satellite,planet,newton's first law,newton's second law,"
    "newton's third law,hooke's law,inertia,equilibrium,normal force,tension,air resistance,terminal velocity,vector,scalar,"
    "unit,metre,kilogram,second,joule,watt,newton,pascal,efficiency,elastic collision,inelastic collision,atom,electron,"
    "nucleus,radiation,half life,conduction,convection,graph,slope,area under the graph,reference frame,relative velocity,"
    "average speed,instantaneous velocity,conservation of energy,conservation of momentum,gravitational field,resultant force,"
    "net force,static friction,kinetic friction,rate of change,significant figure,measurement,uncertainty,equation,formula"
)

_PHYSICS_OBJECTS = (
    "ball,car,train,stone,book,box,block,satellite,rocket,spring,pendulum,plane,boat,cyclist,runner,lift,ladder,bullet,feather,"
    "apple,skydiver,truck,wheel,roller coaster,planet,moon,bridge,parachute,swing,bicycle,bus,football,sledge,crate"
)

_PHYSICS = """
what is {t}|what is the {t}|what is a {t}|what do we mean by {t}|how is {t} defined|define {t}|explain {t}|can you explain {t} again
what is the unit of {t}|how do you measure {t}|how do i calculate {t}|how can i find the {t} of a {o}|what is the formula for {t}
what is the difference between {t} and {t}|is {t} a vector or a scalar|is {t} the same as {t}|how does {t} depend on {t}
why does a {o} fall|why does the {o} slow down|why do we need {t}|why is {t} important|what happens to the {t} when the {o} stops
what causes {t}|when is {t} equal to zero|how does {t} affect the {o}|does the {t} of the {o} change|who discovered {t}
what is the {t} of a {o} that moves at {n} metres per second|how far does the {o} travel in {n} seconds|how fast is the {o} moving
what force acts on the {o}|give me an example of {t}|i do not understand {t}|could you repeat the part about {t}
a {o} has a mass of {n} kilograms|how long does it take the {o} to fall {n} metres|what is {n} newtons divided by {n} kilograms
does a heavy {o} fall faster than a light {o}|how much work is done on the {o}|where does the {t} go|how is {t} related to {t}
can {t} be negative|what does the slope of the graph mean|what is meant by {t} in this chapter|show me how to solve for {t}
the {t} is {n} joules|the {o} accelerates at {n} metres per second squared|t equals {n} seconds|f equals m a|v equals u plus a t
"""


def everyday(rng: random.Random, names: Sequence[str], count: int) -> Iterator[str]:
    lists = {key: _words(value) for key, value in _LISTS.items()} | {"name": list(names)}
    yield from _filled(rng, _EVERYDAY, lists, count)


def physics_questions(rng: random.Random, count: int) -> Iterator[str]:
    from training.recogniser.spelling import number

    numbers = [
        number(value) for value in (*range(2, 31), 40, 45, 50, 60, 75, 80, 90, 100, 120, 200, 250, 300, 500, 1000)
    ]
    lists = {"t": _words(_PHYSICS_THINGS), "o": _words(_PHYSICS_OBJECTS), "n": numbers}
    yield from _filled(rng, _PHYSICS, lists, count)


def _words(text: str) -> list[str]:
    return text.split(",") if "," in text else text.split()


def _filled(rng: random.Random, patterns: str, lists: dict[str, list[str]], count: int) -> Iterator[str]:
    choices = [pattern for line in patterns.strip().splitlines() for pattern in line.split("|")]
    for _ in range(count):
        yield re.sub(r"{(\w+)}", lambda slot: rng.choice(lists[slot[1]]), rng.choice(choices))
